#!/bin/sh
# Starts the Redis of a fleet: users of users.acl, an append-only file, no eviction, TLS when there are certificates.
#
#   REDIS_QUEUES          names or patterns of queues, separated by spaces
#   REDIS_RESPONSE_KEYS   the same for the keys that producers name in requests: response_queue, cancel_key
#   REDIS_LOG_QUEUES      the same for --log-queue, if it is used
#   REDIS_DATABASES       the numbers of databases that queues or broker are in, 0 if it is not said
#   REDIS_PRODUCER_PASSWORD, REDIS_BRIDGE_PASSWORD, REDIS_WORKER_PASSWORD, REDIS_MONITOR_PASSWORD, and, for who operates
#   by hand, REDIS_ADMIN_PASSWORD; or the same with _FILE, the path of a file with the password in it
#   REDIS_REPLICA_PASSWORD, REDIS_SENTINEL_PASSWORD, likewise: for servers with replicas, the same on each of them
#   REDIS_PRIMARY         host and port of the primary, separated by a space, for a server that begins as a replica
#   REDIS_TLS_CERT_FILE, REDIS_TLS_KEY_FILE    with these the server speaks TLS alone
#   REDIS_TLS_CA_FILE     with it clients must show a certificate of that authority
#   REDIS_PORT            6379
#   REDIS_MAXMEMORY       no limit
#   REDIS_SERVER          the program, redis-server or else valkey-server
#
# Arguments are options of the server, and win: start.sh --dir /data. Two do something else:
#   start.sh --print-users    prints the ACL file
#   start.sh --ping           0 if the server of these same variables answers, for a health check
set -eu
umask 077

ROLES="PRODUCER BRIDGE WORKER MONITOR REPLICA SENTINEL ADMIN"

fail() {
    echo "start.sh: $*" >&2
    exit 2
}

# The password of a role, of its variable or of the file that the other one names.
password() {
    eval "value=\${REDIS_$1_PASSWORD:-} file=\${REDIS_$1_PASSWORD_FILE:-}"
    if [ -n "$file" ]; then
        [ -z "$value" ] || fail "REDIS_$1_PASSWORD and REDIS_$1_PASSWORD_FILE exclude each other"
        [ -r "$file" ] || fail "$file (REDIS_$1_PASSWORD_FILE) cannot be read"
        value=$(cat "$file")
        [ -n "$value" ] || fail "$file (REDIS_$1_PASSWORD_FILE) is empty"
    fi
    printf %s "$value"
}

# What an ACL file has of it: no password is written down, nor shown in the list of processes.
hash_of() {
    [ -z "$1" ] || printf %s "$1" | sha256sum | cut -d ' ' -f 1
}

users() {
    [ -n "${REDIS_QUEUES:-}" ] || fail "REDIS_QUEUES is empty: name the queues, like 'hello translate-*'"
    [ -n "${REDIS_RESPONSE_KEYS:-}" ] ||
        fail "REDIS_RESPONSE_KEYS is empty: name the keys of responses, like 'response:*', or '*' for any key"
    hashes=
    for role in $ROLES; do
        value=$(password "$role")
        [ -n "$value" ] || case $role in ADMIN | REPLICA | SENTINEL) true ;; *) false ;; esac ||
            fail "REDIS_${role}_PASSWORD is empty: each user has a password"
        hashes="$hashes $role=$(hash_of "$value")"
    done
    HASHES=$hashes REDIS_DATABASES=${REDIS_DATABASES:-0} awk '
        function words_for(text, name, variable,    words, patterns, count, w, i, at, all) {
            count = split(text, words, " ")
            for (w = 1; w in words; w++) {
                at = index(words[w], name)
                if (!at) { all = all " " words[w]; continue }
                split(ENVIRON[variable], patterns, " ")
                for (i = 1; i in patterns; i++)
                    all = all " " substr(words[w], 1, at - 1) patterns[i] substr(words[w], at + length(name))
            }
            return substr(all, 2)
        }
        function flush() {
            if (line && !left_out) print line
            line = ""
            left_out = 0
        }
        BEGIN {
            count = split(ENVIRON["HASHES"], pairs, " ")
            for (i = 1; i <= count; i++) { split(pairs[i], pair, "="); hash[tolower(pair[1])] = pair[2] }
        }
        /^[[:space:]]*(#|$)/ { next }
        /^[^[:space:]]/ { flush(); user = $2 }
        {
            for (i = 1; i <= NF; i++) {
                word = $i
                if (word == "PASSWORD") {
                    left_out = hash[user] == ""
                    word = "#" hash[user]
                } else {
                    word = words_for(word, "DATABASE", "REDIS_DATABASES")
                    word = words_for(word, "QUEUE", "REDIS_QUEUES")
                    word = words_for(word, "RESPONSE", "REDIS_RESPONSE_KEYS")
                    word = words_for(word, "LOG", "REDIS_LOG_QUEUES")
                }
                line = line (line && word ? " " : "") word
            }
        }
        END { flush() }
    ' "$(dirname "$0")/users.acl"
}

if [ "${1:-}" = --print-users ]; then
    users
    exit
fi

if [ "${1:-}" = --ping ]; then
    REDISCLI_AUTH=$(password MONITOR)
    export REDISCLI_AUTH
    set -- --user monitor -p "${REDIS_PORT:-6379}"
    if [ -n "${REDIS_TLS_CERT_FILE:-}" ]; then
        set -- --tls --cert "$REDIS_TLS_CERT_FILE" --key "${REDIS_TLS_KEY_FILE:-}" "$@"
        if [ -n "${REDIS_TLS_CA_FILE:-}" ]; then
            set -- --cacert "$REDIS_TLS_CA_FILE" "$@"
        else
            set -- --insecure "$@"
        fi
    fi
    [ "$(redis-cli "$@" ping)" = PONG ]
    exit
fi

server=${REDIS_SERVER:-$(command -v redis-server || command -v valkey-server || true)}
[ -n "$server" ] || fail "neither redis-server nor valkey-server is on PATH"

port=${REDIS_PORT:-6379}
if [ -n "${REDIS_TLS_CERT_FILE:-}${REDIS_TLS_KEY_FILE:-}${REDIS_TLS_CA_FILE:-}" ]; then
    for name in REDIS_TLS_CERT_FILE REDIS_TLS_KEY_FILE; do
        eval "file=\${$name:-}"
        [ -n "$file" ] || fail "$name is empty: TLS needs a certificate and its key"
        [ -r "$file" ] || fail "$file ($name) cannot be read"
    done
    set -- --tls-cert-file "$REDIS_TLS_CERT_FILE" --tls-key-file "$REDIS_TLS_KEY_FILE" "$@"
    if [ -n "${REDIS_TLS_CA_FILE:-}" ]; then
        set -- --tls-ca-cert-file "$REDIS_TLS_CA_FILE" --tls-auth-clients yes --tls-replication yes "$@"
    else
        set -- --tls-auth-clients no "$@"
    fi
    set -- --port 0 --tls-port "$port" "$@"
else
    set -- --port "$port" "$@"
fi
[ -z "${REDIS_MAXMEMORY:-}" ] || set -- --maxmemory "$REDIS_MAXMEMORY" "$@"

# The server reads it again at ACL LOAD, so it stays.
text=$(users)
acl=$(mktemp "${TMPDIR:-/tmp}/users.XXXXXX")
printf '%s\n' "$text" >"$acl"

# A primary may be a replica tomorrow. In a file, since arguments can be read by everybody, and sentinels have it written.
conf=
if [ -n "${REDIS_REPLICA_PASSWORD:-}${REDIS_REPLICA_PASSWORD_FILE:-}" ]; then
    replica=$(password REPLICA)
    conf=$(mktemp "${TMPDIR:-/tmp}/redis.XXXXXX")
    printf 'masteruser replica\nmasterauth "%s"\n' "$replica" >"$conf"
    [ -z "${REDIS_PRIMARY:-}" ] || printf 'replicaof %s\n' "$REDIS_PRIMARY" >>"$conf"
elif [ -n "${REDIS_PRIMARY:-}" ]; then
    fail "REDIS_PRIMARY needs REDIS_REPLICA_PASSWORD"
fi

# No password is left in the server's environment.
for role in $ROLES; do
    unset "REDIS_${role}_PASSWORD"
done
exec "$server" ${conf:+"$conf"} --bind "* -::*" --protected-mode yes --aclfile "$acl" \
    --appendonly yes --appendfsync everysec --save "" --maxmemory-policy noeviction --notify-keyspace-events 'K$' "$@"
