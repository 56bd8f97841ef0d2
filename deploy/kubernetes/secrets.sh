#!/bin/sh
# Prints the Secrets of a fleet, with fresh passwords: secrets.sh | kubectl apply -f -
# Run again it makes others: apply these, and restart Redis, bridges, workers and Flower together.
#
#   NAMESPACE        cog-celery
#   REDIS_ADDRESS    HOST:PORT, as seen from every namespace; by default the redis component's
#   REDIS_SCHEME     redis, or rediss for TLS
#   BROKER_URL       another broker than Redis: amqp://USER:PASSWORD@HOST:5672/VHOST
#   REDIS_PRODUCER_PASSWORD, …_BRIDGE_…, …_WORKER_…, …_MONITOR_…, …_ADMIN_…    of a Redis that has them already
set -eu

namespace=${NAMESPACE:-cog-celery}
address=${REDIS_ADDRESS:-redis.$namespace.svc:6379}
scheme=${REDIS_SCHEME:-redis}

fail() {
    echo "secrets.sh: $*" >&2
    exit 2
}

random() {
    od -An -N 24 -t x1 /dev/urandom | tr -d ' \n'
}

case $namespace in *[!a-z0-9-]*) fail "NAMESPACE=$namespace: the name of a namespace is needed" ;; esac
# They stand in URLs, unquoted.
for role in PRODUCER BRIDGE WORKER MONITOR ADMIN; do
    eval "value=\${REDIS_${role}_PASSWORD:-}"
    case $value in
    *[!A-Za-z0-9._~-]*) fail "REDIS_${role}_PASSWORD: only letters, digits and . _ ~ - can stand in a URL" ;;
    '') eval "REDIS_${role}_PASSWORD=\$(random)" ;;
    esac
done
case $address in
*:*[!0-9]* | *[!A-Za-z0-9.:-]* | *: | :*) fail "REDIS_ADDRESS=$address: HOST:PORT is needed" ;;
*:*) ;;
*) fail "REDIS_ADDRESS=$address: HOST:PORT is needed" ;;
esac
case ${BROKER_URL:-} in *[[:cntrl:]]*) fail "BROKER_URL has a line break or another control character in it" ;; esac
case $scheme in redis | rediss) ;; *) fail "REDIS_SCHEME=$scheme: redis or rediss is needed" ;; esac

# secret NAME KEY VALUE …; a pair without a value is left out.
secret() {
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\ntype: Opaque\nstringData:\n' \
        "$1" "$namespace"
    shift
    while [ $# -gt 0 ]; do
        [ -z "$2" ] || printf "  %s: '%s'\n" "$1" "$(printf %s "$2" | sed "s/'/''/g")"
        shift 2
    done
}

secret cog-celery-redis producer-password "$REDIS_PRODUCER_PASSWORD" bridge-password "$REDIS_BRIDGE_PASSWORD" \
    worker-password "$REDIS_WORKER_PASSWORD" monitor-password "$REDIS_MONITOR_PASSWORD" \
    admin-password "$REDIS_ADMIN_PASSWORD"
secret cog-celery-bridge redis-url "$scheme://bridge:$REDIS_BRIDGE_PASSWORD@$address/0" broker-url "${BROKER_URL:-}"
secret cog-celery-worker redis-url "$scheme://worker:$REDIS_WORKER_PASSWORD@$address/0" broker-url "${BROKER_URL:-}"
secret cog-celery-monitor redis-url "$scheme://monitor:$REDIS_MONITOR_PASSWORD@$address/0" \
    broker-url "${BROKER_URL:-}" address "$address" username monitor password "$REDIS_MONITOR_PASSWORD"
# For producers, who may run elsewhere.
secret cog-celery-producer redis-url "$scheme://producer:$REDIS_PRODUCER_PASSWORD@$address/0"
secret cog-celery-flower basic-auth "admin:$(random)"
