resource "google_storage_bucket" "engines" {
  name                        = "${var.project}-enginefarm"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false
  labels                      = { app = "enginefarm" }

  versioning {
    enabled = true
  }

  # `enginefarm gc` collects garbage, because it knows what is in use. These rules only remove old
  # versions of what it has deleted, and interrupted uploads.
  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      days_since_noncurrent_time = var.keep_versions_days
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 2
    }
  }

  logging {
    log_bucket = google_storage_bucket.access_logs.name
  }
}

resource "google_storage_bucket" "access_logs" {
  #checkov:skip=CKV_GCP_62:the logs of the log bucket would be logged forever
  #checkov:skip=CKV_GCP_78:a log line is never changed
  name                        = "${var.project}-enginefarm-access-logs"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age = 90
    }
  }
}
