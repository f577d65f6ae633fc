resource "google_compute_network" "farm" {
  name                    = "enginefarm"
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "farm" {
  name                     = "enginefarm"
  network                  = google_compute_network.farm.id
  region                   = var.region
  ip_cidr_range            = "10.20.0.0/20"
  private_ip_google_access = true

  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = "10.24.0.0/14"
  }

  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = "10.28.0.0/20"
  }

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
  }
}

# Nodes have no public address; they pull images through this NAT.
resource "google_compute_router" "farm" {
  name    = "enginefarm"
  network = google_compute_network.farm.id
  region  = var.region
}

resource "google_compute_router_nat" "farm" {
  name                               = "enginefarm"
  router                             = google_compute_router.farm.name
  region                             = var.region
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}

# GKE opens the ports that its nodes need; all others stay closed.
resource "google_compute_firewall" "deny" {
  name      = "enginefarm-deny-ingress"
  network   = google_compute_network.farm.id
  direction = "INGRESS"
  priority  = 65534

  source_ranges = ["0.0.0.0/0"]

  deny {
    protocol = "all"
  }
}
