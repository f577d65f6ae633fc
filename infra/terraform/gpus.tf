# The machine type for each GPU label of gpus.toml. To add a label, add a row here, one in each of
# the two maps of variables.tf, and a folder in infra/kubernetes/overlays/gke.
locals {
  gpus = {
    t4   = { machine = "n1-standard-8", accelerator = "nvidia-tesla-t4", disk_gb = 200 }
    l4   = { machine = "g2-standard-8", accelerator = "nvidia-l4", disk_gb = 200 }
    a100 = { machine = "a2-highgpu-1g", accelerator = "nvidia-tesla-a100", disk_gb = 200 }
  }
}

resource "google_container_node_pool" "gpu" {
  for_each = local.gpus

  name           = "gpu-${each.key}"
  cluster        = google_container_cluster.farm.id
  node_locations = var.gpu_zones[each.key]

  # total_ counts all zones. KEDA creates a pod, and the pod makes the pool add a node.
  autoscaling {
    total_min_node_count = 0
    total_max_node_count = var.gpu_max_nodes[each.key]
    location_policy      = "ANY"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = each.value.machine
    spot            = var.spot
    disk_size_gb    = each.value.disk_gb
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    labels          = { app = "enginefarm", gpu = each.key }

    guest_accelerator {
      type  = each.value.accelerator
      count = 1

      gpu_driver_installation_config {
        gpu_driver_version = "LATEST"
      }
    }

    taint {
      key    = "nvidia.com/gpu"
      value  = "present"
      effect = "NO_SCHEDULE"
    }

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }
}
