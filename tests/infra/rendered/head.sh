#!/bin/bash
# Rendered by Terraform. Runs as root.
first_boot() {
  # Asks Ray's dashboard whether the global control store answers.
  cat > /etc/lexray/ray-answers <<'EOF'
#!/bin/bash
token=$(sed -n 's/^RAY_AUTH_TOKEN=//p' /etc/lexray/ray.env)
exec curl -sf -m 10 -o /dev/null -H @- http://127.0.0.1:8265/api/gcs_healthz <<< "Authorization: Bearer $token"
EOF
  # A head whose Ray has been silent for 600 s, after 1800 s to come up, ends itself: its group takes only a
  # machine that is gone for dead, and starts another.
  cat > /etc/lexray/watch-ray <<'EOF'
#!/bin/bash
answered=1800
while [ $((SECONDS - answered)) -lt 600 ]; do
  sleep 20
  if bash /etc/lexray/ray-answers && [ "$SECONDS" -gt "$answered" ]; then
    answered=$SECONDS
  fi
done
echo 'lexray: Ray has not answered for 600 s: this head ends itself, and its group starts another' >> /var/log/lexray-boot.log
bash /etc/lexray/report /var/log/lexray-boot.log
shutdown -h now
EOF
  cat > /etc/systemd/system/lexray-watch.service <<'EOF'
[Unit]
Description=Ends a head whose Ray does not answer

[Service]
Environment=AWS_DEFAULT_REGION=us-east-1
ExecStart=/bin/bash /etc/lexray/watch-ray
Restart=on-failure

[Install]
WantedBy=multi-user.target
EOF
  systemctl daemon-reload
  systemctl enable --now lexray-watch.service
  # At the deadline the group of the head goes to zero. Workers end themselves when they have lost their head.
  systemd-run --unit=lexray-deadline --on-active='24h' --setenv=AWS_DEFAULT_REGION='us-east-1' \
    --property=Restart=on-failure --property=RestartSec=30 \
    aws autoscaling set-desired-capacity --auto-scaling-group-name 'lexray-head' --desired-capacity 0
}

set -euo pipefail
export AWS_DEFAULT_REGION='us-east-1' HOME=/root

# To stderr: what functions print is read by who calls them.
say() { echo "lexray: $*" >&2; }

# cloud-init runs this script once. It installs itself as a unit that runs it again until it succeeds: what a first boot
# needs (the way out, rights of the role, endpoints) may come late.
if [ "$0" != /etc/lexray/boot ]; then
  mkdir -p /etc/lexray/public
  install -m 700 "$0" /etc/lexray/boot
  cat > /etc/lexray/report <<'EOF'
#!/bin/bash
# Puts the end of a file into the log group, where it is still to be read when the node is gone.
stream="boot-$(cat /var/lib/cloud/data/instance-id || hostname)"
aws logs create-log-stream --log-group-name '/lexray/lexray/nodes' --log-stream-name "$stream"
tail -c 20000 "$1" |
  python3 -c 'import json, sys, time; print(json.dumps([{"timestamp": int(1000 * time.time()), "message": sys.stdin.read()}]))' |
  aws logs put-log-events --log-group-name '/lexray/lexray/nodes' --log-stream-name "$stream" --log-events file:///dev/stdin
EOF
  cat > /etc/systemd/system/lexray-boot.service <<'EOF'
[Unit]
Description=Boot of a Ray node
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/bash /etc/lexray/boot
Restart=on-failure
RestartSec=15
TimeoutStartSec=1800
StandardOutput=append:/var/log/lexray-boot.log
StandardError=append:/var/log/lexray-boot.log

[Install]
WantedBy=multi-user.target
EOF
  first_boot
  systemctl daemon-reload
  systemctl enable lexray-boot.service
  systemctl start --no-block lexray-boot.service
  exit
fi

# A boot that fails says why.
finish() {
  local status=$?
  [ "$status" -eq 0 ] && return
  say "start-up failed with status $status"
  bash /etc/lexray/report /var/log/lexray-boot.log > /dev/null || true
  true
}
trap finish EXIT

retry() {
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return
    say "attempt $attempt failed: ${*:1:4}"
    sleep $((attempt * 3))
  done
  return 1
}

# No call to AWS is made once only. Input comes from files: a pipe would be empty the second time.
aws() { retry command aws "$@"; }

metadata_token=$(retry curl -sSf -X PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 600')
metadata() { retry curl -sSf -H "X-aws-ec2-metadata-token: $metadata_token" "http://169.254.169.254/latest/meta-data/$1"; }
instance_id=$(metadata instance-id)
node_address=$(metadata local-ipv4)
zone=$(metadata placement/availability-zone)

# Spilled objects and the cache of chunks lie under /mnt/lexray: on the instance's own disks where it has some, as one
# RAID 0, else on the root volume. Some images have joined and mounted the disks already.
prepare_disk() {
  local disks device
  mkdir -p /mnt/lexray
  mapfile -t disks < <(lsblk -dpno NAME,MODEL | awk '/Instance Storage/ { print $1 }')
  if mountpoint -q /mnt/lexray; then
    say "disks are mounted"
  elif mountpoint -q /opt/dlami/nvme; then
    mount --bind /opt/dlami/nvme /mnt/lexray
  elif [ "${#disks[@]}" -gt 0 ]; then
    device=${disks[0]}
    if [ "${#disks[@]}" -gt 1 ]; then
      device=/dev/md0
      [ -e "$device" ] || mdadm --create "$device" --run --level=0 --raid-devices="${#disks[@]}" "${disks[@]}"
    fi
    mkfs.ext4 -q -F -E lazy_itable_init=1 "$device"
    mount -o noatime "$device" /mnt/lexray
  fi
  mkdir -p /mnt/lexray/spill /mnt/lexray/cache
  chmod 1777 /mnt/lexray /mnt/lexray/spill /mnt/lexray/cache
}

# Variables of every Ray process of this node. The token is read by root alone.
write_environment() {
  local token=$1 head_address=$2 node_type=$3
  install -m 600 /dev/null /etc/lexray/ray.env
  cat > /etc/lexray/ray.env <<EOF
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$token
RAY_enable_autoscaler_v2=1
RAY_CLOUD_INSTANCE_ID=$instance_id
RAY_NODE_TYPE_NAME=$node_type
RAY_NODE_ZONE=$zone
AWS_DEFAULT_REGION=us-east-1
LEXRAY_HEAD_ADDRESS=$head_address
LEXRAY_NODE_ADDRESS=$node_address
RAY_grpc_client_keepalive_time_ms=10000
RAY_grpc_client_keepalive_timeout_ms=10000
RAY_grpc_keepalive_time_ms=10000
RAY_grpc_keepalive_timeout_ms=10000
RAY_health_check_failure_threshold=5
RAY_health_check_initial_delay_ms=5000
RAY_health_check_period_ms=5000
RAY_health_check_timeout_ms=10000
EOF
}

log_in() { aws ecr get-login-password | docker login --username AWS --password-stdin "$1"; }

pull_image() {
  local image='123456789012.dkr.ecr.us-east-1.amazonaws.com/lexray:0.1.0'
  local registry=${image%%/*}
  if [[ "$registry" == *.dkr.ecr.*.amazonaws.com* ]]; then
    retry log_in "$registry"
  fi
  retry docker pull --quiet "$image"
}

# Ray in its container, kept by systemd. $1 are further lines of the unit. It is not enabled: after a reboot, too, the boot
# starts it.
start_ray() {
  cat > /etc/systemd/system/lexray-ray.service <<EOF
[Unit]
Description=Ray
After=docker.service network-online.target
Requires=docker.service

[Service]
ExecStart=/usr/bin/docker run --rm --name ray --init --network host --ipc host \
  --ulimit nofile=1048576 --ulimit memlock=-1 \
  --env-file /etc/lexray/ray.env --volume /etc/lexray/public:/etc/lexray/public:ro --volume /mnt/lexray:/mnt/lexray \
  --log-driver awslogs --log-opt awslogs-region=us-east-1 --log-opt awslogs-group=/lexray/lexray/nodes --log-opt awslogs-stream=ray-$instance_id \
  --entrypoint /bin/bash 123456789012.dkr.ecr.us-east-1.amazonaws.com/lexray:0.1.0 /etc/lexray/public/start-ray
ExecStop=/usr/bin/docker stop --time 100 ray
TimeoutStopSec=120
$1
EOF
  systemctl daemon-reload
  systemctl start lexray-ray.service
}

prepare_disk

# The token is made once in the life of the cluster: a head that replaces another finds it.
ensure_token() {
  local versions
  # A failure here must not pass for a secret without content: everybody would be left with the old token.
  versions=$(aws secretsmanager describe-secret --secret-id 'arn:aws:secretsmanager:us-east-1:123456789012:secret:/lexray/lexray/ray-token-000000' --query VersionIdsToStages --output text)
  [ "$versions" = None ] || return 0
  install -m 600 /dev/null /etc/lexray/token
  openssl rand -hex 32 | tr -d '\n' > /etc/lexray/token
  aws secretsmanager put-secret-value --secret-id 'arn:aws:secretsmanager:us-east-1:123456789012:secret:/lexray/lexray/ray-token-000000' --secret-string file:///etc/lexray/token --query VersionId
  rm /etc/lexray/token
}

ensure_token
token=$(aws secretsmanager get-secret-value --secret-id 'arn:aws:secretsmanager:us-east-1:123456789012:secret:/lexray/lexray/ray-token-000000' --query SecretString --output text)
write_environment "$token" "$node_address:6379" head

# The sweep's driver runs here and speaks to W&B. Without a key it writes offline runs.
wandb_versions=$(aws secretsmanager describe-secret --secret-id 'arn:aws:secretsmanager:us-east-1:123456789012:secret:/lexray/lexray/wandb-api-key-000000' --query VersionIdsToStages --output text)
if [ "$wandb_versions" != None ]; then
  key=$(aws secretsmanager get-secret-value --secret-id 'arn:aws:secretsmanager:us-east-1:123456789012:secret:/lexray/lexray/wandb-api-key-000000' --query SecretString --output text)
  echo "WANDB_API_KEY=$key" >> /etc/lexray/ray.env
fi

cat > /etc/lexray/public/ray-cluster.yaml <<'EOF'
"auth":
  "ssh_user": "nobody"
"available_node_types":
  "a10g":
    "labels":
      "ray.io/availability-zone": "us-east-1a"
    "max_workers": 2
    "min_workers": 0
    "node_config":
      "InstanceType": "g5.12xlarge"
      "LaunchTemplate":
        "LaunchTemplateId": "lt-0"
        "Version": "1"
      "LaunchWays":
      - "InstanceMarketOptions":
          "MarketType": "spot"
          "SpotOptions":
            "InstanceInterruptionBehavior": "terminate"
            "SpotInstanceType": "one-time"
        "InstanceType": "g5.12xlarge"
      "SubnetIds":
      - "subnet-0"
      "TagSpecifications":
      - "ResourceType": "instance"
        "Tags":
        - "Key": "lexray-cluster"
          "Value": "lexray"
    "resources":
      "CPU": 46
      "GPU": 4
      "memory": 122836484096
  "head":
    "max_workers": 0
    "min_workers": 0
    "node_config":
      "InstanceType": "m6i.xlarge"
      "SubnetIds":
      - "subnet-0"
      - "subnet-0"
      - "subnet-0"
      - "subnet-0"
    "resources":
      "CPU": 0
"cluster_name": "lexray"
"cluster_synced_files": []
"file_mounts": {}
"head_node_type": "head"
"head_setup_commands": []
"head_start_ray_commands": []
"idle_timeout_minutes": 10
"initialization_commands": []
"max_workers": 2
"provider":
  "cache_stopped_nodes": false
  "disable_launch_config_check": true
  "disable_node_updaters": true
  "module": "lexray.cluster.node.ec2_provider.Ec2Provider"
  "region": "us-east-1"
  "type": "external"
  "use_internal_ips": true
"setup_commands": []
"worker_setup_commands": []
"worker_start_ray_commands": []

EOF

# The dashboard listens on every address, since trials ask it from other nodes; the security group keeps it inside.
cat > /etc/lexray/public/start-ray <<'EOF'
#!/bin/bash
# Half of the memory is for functions without a core, of which each running trial has one; no windows of rows lie here.
read -r _ kib _ < /proc/meminfo
exec ray start --head --block --disable-usage-stats \
  --port=6379 --node-ip-address="$LEXRAY_NODE_ADDRESS" \
  --dashboard-host=0.0.0.0 --dashboard-port=8265 \
  --num-cpus=0 --num-gpus=0 --memory=$((kib * 512)) --object-store-memory=$((2 ** 30)) \
  --object-spilling-directory=/mnt/lexray/spill \
  --autoscaling-config=/etc/lexray/public/ray-cluster.yaml
EOF

pull_image
start_ray 'Restart=always
RestartSec=10'
# Last: workers that find the address find Ray there.
retry bash /etc/lexray/ray-answers
aws ssm put-parameter --name '/lexray/lexray/head-address' --value "$node_address:6379" --overwrite

say "head is up at $node_address"
