# The nodes' account: images, logs and metrics. Pods use their own keys.
resource "google_service_account" "node" {
  account_id   = "enginefarm-node"
  display_name = "enginefarm nodes"
}

resource "google_project_iam_member" "node" {
  for_each = toset([
    "roles/artifactregistry.reader",
    "roles/logging.logWriter",
    "roles/monitoring.metricWriter",
    "roles/stackdriver.resourceMetadata.writer",
  ])

  project = var.project
  role    = each.value
  member  = google_service_account.node.member
}

# The farm writes and reads objects of its bucket; an inference host reads them. Neither can
# see another bucket, or change this one's settings.
resource "google_service_account" "farm" {
  account_id   = "enginefarm-farm"
  display_name = "enginefarm workers"
}

resource "google_service_account" "pull" {
  account_id   = "enginefarm-pull"
  display_name = "enginefarm inference hosts"
}

resource "google_storage_bucket_iam_member" "farm" {
  bucket = google_storage_bucket.engines.name
  role   = "roles/storage.objectUser"
  member = google_service_account.farm.member
}

resource "google_storage_bucket_iam_member" "pull" {
  bucket = google_storage_bucket.engines.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.pull.member
}
