resource "google_container_cluster" "farm" {
  #checkov:skip=CKV_GCP_12:Dataplane V2 (datapath_provider) enforces NetworkPolicy; the add-on excludes it
  #checkov:skip=CKV_GCP_65:needs a Google Workspace group, which not every project has
  #checkov:skip=CKV_GCP_69:set on each node pool; the default pool is removed
  name     = "enginefarm"
  location = var.region

  network         = google_compute_network.farm.id
  subnetwork      = google_compute_subnetwork.farm.id
  networking_mode = "VPC_NATIVE"

  # Our pools are below.
  remove_default_node_pool = true
  initial_node_count       = 1

  enable_shielded_nodes       = true
  enable_intranode_visibility = true
  deletion_protection         = true
  datapath_provider           = "ADVANCED_DATAPATH" # enforces NetworkPolicy

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = false
    master_ipv4_cidr_block  = "172.16.0.0/28"
  }

  master_authorized_networks_config {
    dynamic "cidr_blocks" {
      for_each = var.admin_cidrs
      content {
        display_name = cidr_blocks.key
        cidr_block   = cidr_blocks.value
      }
    }
  }

  master_auth {
    client_certificate_config {
      issue_client_certificate = false
    }
  }

  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }

  release_channel {
    channel = "STABLE"
  }

  binary_authorization {
    evaluation_mode = "PROJECT_SINGLETON_POLICY_ENFORCE"
  }

  resource_labels = { app = "enginefarm" }
}

resource "google_container_node_pool" "control" {
  name           = "control"
  cluster        = google_container_cluster.farm.id
  node_count     = 1
  node_locations = ["${var.region}-a"]

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = "e2-standard-8"
    disk_size_gb    = 200
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    labels          = { app = "enginefarm" }

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }
}
