#!/bin/sh
# Makes the secrets of infra/compose, once: run again, it keeps those that are there.
# To rotate one: delete its file (both store keys go with s3_identities.json), run this,
# and `docker compose up -d` again.
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
cd "$folder"

random() { # letters and digits only, so that no file format needs quoting
    head -c 512 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | head -c "$1"
}

keep() { # name, contents
    [ -e "$1" ] || printf '%s' "$2" >"$1"
}

keep db_password "$(random 40)"
keep prefect_auth "farm:$(random 40)"
keep grafana_password "$(random 24)"
if [ ! -e s3_identities.json ]; then
    admin=$(random 20) admin_secret=$(random 40)
    farm=$(random 20) farm_secret=$(random 40)
    hosts=$(random 20) hosts_secret=$(random 40)
    cat >s3_identities.json <<JSON
{"identities": [
  {"name": "admin", "credentials": [{"accessKey": "$admin", "secretKey": "$admin_secret"}],
   "actions": ["Admin"]},
  {"name": "farm", "credentials": [{"accessKey": "$farm", "secretKey": "$farm_secret"}],
   "actions": ["Read:enginefarm", "Write:enginefarm", "List:enginefarm"]},
  {"name": "hosts", "credentials": [{"accessKey": "$hosts", "secretKey": "$hosts_secret"}],
   "actions": ["Read:enginefarm", "List:enginefarm"]}
]}
JSON
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
        "$admin" "$admin_secret" >store_admin_key
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
        "$farm" "$farm_secret" >store_key
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
        "$hosts" "$hosts_secret" >store_read_key
fi
# Compose mounts these files as they are: the images' user must be able to read them.
if [ "$(id -u)" = 0 ]; then
    chown 10001:10001 prefect_auth s3_identities.json store_key store_admin_key store_read_key
    chown 10001:999 db_password # 999: the PostgreSQL image's group
    chmod 0440 db_password
    chown 472 grafana_password
else
    chmod 0444 ./*
    chmod 0700 .
fi
