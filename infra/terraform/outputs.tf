output "store" {
  description = "ENGINEFARM_STORE of every worker and host."
  value       = "s3://${google_storage_bucket.engines.name}"
}

output "endpoint" {
  description = "AWS_ENDPOINT_URL: GCS by its S3 interface."
  value       = "https://storage.googleapis.com"
}

output "farm_account" {
  description = "Make its HMAC key by hand (docs/stores.md): it never is in Terraform's state."
  value       = google_service_account.farm.email
}

output "pull_account" {
  description = "Account of inference hosts; read-only."
  value       = google_service_account.pull.email
}
