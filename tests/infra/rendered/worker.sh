#!/bin/bash
# Rendered by Terraform. Runs as root.
first_boot() {
  say "first boot of a worker"
  # Whatever becomes of the head, no node outlives the deadline.
  shutdown -h "+$((24 * 60))"
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
  [ "$(cut -d. -f1 /proc/uptime)" -lt 1800 ] || shutdown -h now
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
  --ulimit nofile=1048576 --ulimit memlock=-1 --memory 188978561024 --gpus all \
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

token=$(aws secretsmanager get-secret-value --secret-id 'arn:aws:secretsmanager:us-east-1:123456789012:secret:/lexray/lexray/ray-token-000000' --query SecretString --output text)
head_address=$(aws ssm get-parameter --name '/lexray/lexray/head-address' --query Parameter.Value --output text)
write_environment "$token" "$head_address" 'a10g'

cat > /etc/lexray/public/start-ray <<'EOF'
#!/bin/bash
exec ray start --block --disable-usage-stats \
  --address="$LEXRAY_HEAD_ADDRESS" --node-ip-address="$LEXRAY_NODE_ADDRESS" \
  --num-cpus=46 --num-gpus=4 --memory=122836484096 --object-store-memory=56693358592 \
  --object-spilling-directory=/mnt/lexray/spill
EOF

# AWS says two minutes ahead that it takes a spot node back: trials save their state and go on elsewhere, see
# docs/placement.md. A node on which nothing runs any more is let go by Ray, and ends itself.
cat > /etc/lexray/public/watch-notices <<'EOF'
#!/bin/bash
metadata=http://169.254.169.254/latest
noticed() {
  local token
  token=$(curl -sf -X PUT "$metadata/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 60') &&
    curl -sf -o /dev/null -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/spot/instance-action"
}
# In the container, whose variables say where the head is and what Ray calls this node.
leave() {
  docker exec ray bash -c 'python -m lexray.cluster.node.drain_node "$LEXRAY_HEAD_ADDRESS" "$RAY_CLOUD_INSTANCE_ID" 100 \
    "AWS takes the spot node back"'
}
until noticed && leave; do
  sleep 5
done
EOF

cat > /etc/systemd/system/lexray-notices.service <<'EOF'
[Unit]
Description=Notices that this node is taken back
After=lexray-ray.service

[Service]
ExecStart=/bin/bash /etc/lexray/public/watch-notices
Restart=on-failure
EOF

pull_image
# A node without Ray is only a bill: it ends itself, and with that its instance.
start_ray 'ExecStopPost=/usr/sbin/shutdown -h now'
systemctl start lexray-notices.service
say "worker of pool a10g is up at $node_address"
