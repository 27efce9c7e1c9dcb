# shellcheck shell=bash
# The section `relay` of scripts/bench, which sources this: two members with one machine, C, between them.
#
# raw       C routes                       direct   members on A and B, C routes
# relayed   C routes nothing and relays    stream   C routes, UDP is blocked between the members
# Each of them without delay, then with 20 ms of RTT and loss on A's side of C.

between_up() { # CONGESTION FORWARD(0|1) DELAY(0|1)
  hosts_down
  local ns
  space "$A" && space "$B" && space "$C"
  if [[ $3 == 1 ]]; then
    space "$R"
    ip link add under0 netns "$A" type veth peer name r0 netns "$R"
    ip link add to-a netns "$C" type veth peer name r1 netns "$R"
    for ns in r0 r1; do ip -n "$R" link set "$ns" up; done
    # As in `delay`: what carries single packets needs whole checksums.
    ip netns exec "$A" ethtool -K under0 tx off tso off tx-udp-segmentation off gro on >/dev/null
    ip netns exec "$C" ethtool -K to-a tx off tso off tx-udp-segmentation off gro on >/dev/null
  else
    ip link add under0 netns "$A" type veth peer name to-a netns "$C"
  fi
  ip link add under0 netns "$B" type veth peer name to-b netns "$C"
  ip netns exec "$C" sysctl -qw net.ipv4.ip_forward="$2"
  ip -n "$C" addr add 10.9.0.9/24 dev to-a
  ip -n "$C" addr add 10.9.1.9/24 dev to-b
  ip -n "$A" addr add 10.9.0.1/24 dev under0
  ip -n "$B" addr add 10.9.1.2/24 dev under0
  for ns in "$C to-a" "$C to-b" "$A under0" "$B under0"; do ip -n "${ns% *}" link set "${ns#* }" up; done
  ip -n "$A" route add 10.9.1.0/24 via 10.9.0.9 congctl "$1"
  ip -n "$B" route add 10.9.0.0/24 via 10.9.1.9 congctl "$1"
  beyond=10.9.0.9 target=10.9.1.2
}
forwarder_config() { # WHOM: as in transport.relay.for
  config "$tmp/c" c $'relay_only = true\n[transport]\n'"relay = { offer = true, max_mbit = 1000000, for = $1 }"
}
forwarder_up() { # the relay on C, its process in $forwarder, its ID in $relay_id
  forwarder_config '"anyone"'
  daemon "$binary" "$C" "$tmp/c"
  forwarder=$!
  local end=$((SECONDS + 15))
  until relay_id=$(ctl "$binary" c id --json 2>/dev/null | jq -er .peer_id); do
    if ((SECONDS > end)); then tail -n 5 "$tmp/c.log" >&2; return 1; fi
    sleep 0.1
  done
}
between_members() { # NAME: the members of one kind of path
  local gate end
  case $1 in
    raw) return 0 ;;
    direct) join_by=(--peer /ip4/10.9.0.1/tcp/4100) && overlay_up "$binary" ;;
    stream)
      for gate in "$A" "$B"; do
        ip netns exec "$gate" nft 'add table inet noudp; add chain inet noudp out { type filter hook output priority 0; }; add rule inet noudp out udp dport 4100 drop'
      done
      join_by=(--peer /ip4/10.9.0.1/tcp/4100) && overlay_up "$binary"
      ;;
    relayed)
      forwarder_up
      # Each sees the relay on its own side.
      join_by=()
      overlay_up "$binary" "[transport]
bootstrap = [\"/ip4/10.9.0.9/udp/4100/quic-v1/p2p/$relay_id\", \"/ip4/10.9.1.9/udp/4100/quic-v1/p2p/$relay_id\"]"
      # Strangers have 2 Mbit/s: what is measured is what the relay's owner gives to peers that are named.
      forwarder_config "[\"$(ctl "$binary" a id --json | jq -r .peer_id)\", \"$(ctl "$binary" b id --json | jq -r .peer_id)\"]"
      ctl "$binary" c reload >/dev/null
      end=$((SECONDS + 30))
      until [[ $(carriers "$binary") -ge 1 ]] && in_a ping -q -c 1 -W 1 "$target" >/dev/null 2>&1; do
        if ((SECONDS > end)); then echo "bench: nothing is relayed" >&2; return 1; fi
        sleep 0.5
      done
      sleep 5
      ;;
  esac
  remember "$1"
  local is expected=$1
  is=$(ctl "$binary" a status --json | jq -r '[.subnets[].peers[].path | "\(.kind)"] | first')
  [[ $expected != stream ]] || expected=direct
  if [[ $is != "${expected/relayed/relay}"* ]]; then echo "bench: $1: the path is $is" >&2; return 1; fi
}
between_down() {
  stop_daemons
  [[ -z $forwarder ]] || end_all "$forwarder"
  forwarder=''
  stop_helpers
}
forwarder_ticks() { [[ -z $forwarder ]] || sed 's/^.*) //' "/proc/$forwarder/stat" | awk '{print $12+$13}'; }
between_measure() { # NAME
  local f=$tmp/run.json low mean t0 t1 bytes
  quiet
  read -r low mean < <(rtt "$PINGS" 0.01)
  note "$1" "$main_cc" relay ping_idle_min_ms "$low"
  note "$1" "$main_cc" relay ping_idle_ms "$mean"
  quiet
  t0=$(forwarder_ticks)
  tcp "$1" "$main_cc" relay tcp1_gbit
  t1=$(forwarder_ticks)
  bytes=$(jq -r '.end.sum_received.bytes // 0' "$f")
  if [[ -n $t0 && $bytes -gt 0 ]]; then
    note "$1" "$main_cc" relay forwarder_cpu_s_per_gb "$(calc "print ($t1 - $t0) / $hz / ($bytes / 1e9)")"
  fi
  tcp "$1" "$main_cc" relay tcp4_gbit -P 4
}
section_relay() {
  local round name loss
  for ((round = 1; round <= REPEAT; round++)); do
    for name in raw direct relayed stream; do
      echo "relay: round $round of $REPEAT, $name" >&2
      between_up "$main_cc" "$([[ $name == relayed ]] && echo 0 || echo 1)" 0
      between_members "$name"
      [[ $name == raw ]] || note "$name" "$main_cc" relay first_packet_ms "$first_ms"
      between_measure "$name"
      between_down
    done
  done
  for ((round = 1; round <= LONG_REPEAT; round++)); do
    for name in raw direct relayed stream; do
      between_up "$main_cc" "$([[ $name == relayed ]] && echo 0 || echo 1)" 1
      relay_up 0
      between_members "$name"
      for loss in $LOSSES; do
        echo "relay: 20 ms, round $round of $LONG_REPEAT, $name, loss $loss" >&2
        relay_up "$loss"
        sleep 2
        iperf "$tmp/run.json" "$LONG_SECS" -C "$main_cc"
        note "$name" "$main_cc" "relay-$loss" tcp1_gbit "$(gbit "$tmp/run.json" .end.sum_received.bits_per_second)"
      done
      between_down
    done
  done
}
