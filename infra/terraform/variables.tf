variable "project" {
  description = "Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of the cluster and of the bucket."
  type        = string
  default     = "europe-west4"
}

variable "gpu_zones" {
  description = "Zones that have the GPUs, by label; not every zone has each."
  type        = map(list(string))
  default = {
    t4   = ["europe-west4-a", "europe-west4-b"]
    l4   = ["europe-west4-a", "europe-west4-b"]
    a100 = ["europe-west4-a"]
  }
}

variable "gpu_max_nodes" {
  description = "Most nodes of each label. All pools go down to 0."
  type        = map(number)
  default = {
    t4   = 2
    l4   = 2
    a100 = 1
  }
}

variable "spot" {
  description = "Spot GPUs: cheaper, and taken away at any time; a build is then run again."
  type        = bool
  default     = false
}

variable "admin_cidrs" {
  description = "Networks that may reach the cluster's API."
  type        = map(string)
}

variable "keep_versions_days" {
  description = "How long an overwritten or deleted object can be had back."
  type        = number
  default     = 30
}
