//! Direct paths that somebody blocks: the owner of one end by rule, or a router that lets control pass and packets not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ci;
use crate::lab::internet::{Internet, Uplink};
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, text, until};
use crate::reach::{THREE, found, relay, relayed, reserved, start, start_with, two};
use crate::underlay::{FIVE, carried, datagrams, heal, ingress, pair, path};

pub const CASES: &[Case] = &[
    ci!(addresses_that_the_owner_denies_are_the_reason_policy_until_a_reload_allows_them),
    ci!(a_router_that_drops_packets_and_no_probes_is_the_reason_blocked_data),
    ci!(packets_go_by_stream_where_a_router_drops_them_as_datagrams),
    ci!(a_path_that_is_cut_one_way_is_left_for_a_relay),
];

/// Datagrams of packets: probes and their answers are either smaller or as large as the path carries.
const OF_PACKETS: &str = "udp dport 4100 udp length 300-1150 counter drop";

/// Echo requests of 500 bytes, which are neither as small nor as large as a probe.
fn echoes(from: &Netns, to: &str, count: u32) -> Result<u32> {
    let count = count.to_string();
    let words = [
        "ping", "-n", "-q", "-s", "500", "-i", "0.05", "-W", "1", "-c", &count, to,
    ];
    let said = from.run(&words)?.out;
    let received = said
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"));
    received
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("ping said {said:?}"))
}

/// Waits until status names this reason of a relayed path; the path.
fn reason(of: &Host, to: &str, wanted: &str) -> Result<Value> {
    let mut last = Value::Null;
    until(&format!("the reason is {wanted}"), SOON, || {
        last = path(of, to)?;
        ensure!(
            last["kind"] == "relay" && last["reason"] == wanted,
            "{last}"
        );
        Ok(true)
    })?;
    Ok(last)
}

/// N66.
fn addresses_that_the_owner_denies_are_the_reason_policy_until_a_reload_allows_them(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let nat = Uplink::behind(Kind::port_restricted());
    let (_here, a) = inet.behind("a", 10, &nat)?;
    let (there, b) = inet.behind("b", 11, &nat)?;
    let denied = format!(
        "deny_cidrs = [\"{}/32\", \"192.168.11.0/24\"]\n",
        there.public()
    );
    start_with(&a, &[&relay], &denied)?;
    start(&b, &[&relay])?;
    for host in [&a, &b] {
        reserved(host)?;
    }
    found(&a, &b)?;
    b.ns().reaches(&a.overlay("lab")?.0, THREE)?;
    let path = reason(&a, "b", "policy")?;
    ensure!(text(&path, "remedy")?.contains("deny_cidrs"), "{path}");
    let doctor = a.byway(&["doctor", "b", "--json"])?;
    ensure!(
        doctor.code == 9 && doctor.out.contains("deny_cidrs"),
        "{doctor}"
    );
    // What the remedy says helps.
    let file = a.dir().join("byway.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace(&denied, ""))?;
    a.ok(&["reload"])?;
    datagrams(&a, &b, SOON)
}

/// Lets no packet pass between two sites as a datagram. The probes do, and whatever goes to the relay.
fn drop_packets(inet: &Internet<'_>) -> Result<()> {
    let rules = format!(
        "table inet data {{ chain f {{ type filter hook forward priority 0; \
         iifname \"n-a\" oifname \"n-b\" {OF_PACKETS}; iifname \"n-b\" oifname \"n-a\" {OF_PACKETS}; }}; }}"
    );
    inet.space().ok(&["nft", &rules]).map(drop)
}

fn a_router_that_drops_packets_and_no_probes_is_the_reason_blocked_data(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::port_restricted());
    let two = two(&inet, &nat, &nat)?;
    let (a, b) = (&two.a, &two.b);
    found(a, b)?;
    datagrams(a, b, FIVE)?;
    let inside = a.overlay("lab")?.0;
    ensure!(
        echoes(b.ns(), &inside, 10)? == 10,
        "before the router drops any"
    );
    drop_packets(&inet)?;
    let answered = echoes(b.ns(), &inside, 100)?;
    println!("  {answered} of 100 echoes in the five seconds from the first lost on");
    ensure!(answered >= 40, "{answered} of 100");
    let path = reason(b, "a", "blocked-data")?;
    ensure!(path["carrier"] == "datagram", "{path}");
    ensure!(text(&path, "remedy")?.contains("firewall"), "{path}");
    ensure!(echoes(b.ns(), &inside, 20)? == 20, "through the relay");
    Ok(())
}

/// Where no relay is known, the next best path is the stream of the control connection. Both families are tried first, each
/// once.
fn packets_go_by_stream_where_a_router_drops_them_as_datagrams(lab: &Lab) -> Result<()> {
    let (a, b) = pair(lab)?;
    let inside = a.overlay("lab")?.0;
    ensure!(
        echoes(b.ns(), &inside, 10)? == 10,
        "before the router drops any"
    );
    let ns = b.ns();
    let answered = std::thread::scope(|scope| {
        let asking = scope.spawn(|| echoes(ns, &inside, 240));
        ingress(lab, "data", &[&a, &b], &[OF_PACKETS])?;
        let begun = Instant::now();
        // First whoever asks, then whoever answers: before, the other one sends nothing that could be missed.
        for (of, to) in [(&b, "a"), (&a, "b")] {
            carried(of, to, "stream", SOON)?;
            println!("  {} by stream after {:?}", of.name(), begun.elapsed());
        }
        let asked = asking.join();
        asked.map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })?;
    println!("  {answered} of 240 echoes in the twelve seconds from the first lost on");
    ensure!(echoes(ns, &inside, 20)? == 20, "by stream");
    heal(lab, "data")
}

/// A06.
fn a_path_that_is_cut_one_way_is_left_for_a_relay(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::port_restricted());
    let two = two(&inet, &nat, &nat)?;
    let (a, b) = (&two.a, &two.b);
    found(a, b)?;
    datagrams(a, b, FIVE)?;
    let inside = a.overlay("lab")?.0;
    let probes = b.ns().probe(&inside, 350, 20)?;
    let rules = "table inet oneway { chain f { type filter hook forward priority 0; \
                 iifname \"n-a\" oifname \"n-b\" drop; }; }";
    inet.space().ok(&["nft", rules])?;
    let begun = Instant::now();
    for (of, to) in [(a, "b"), (b, "a")] {
        relayed(of, to, SOON)?;
    }
    let took = begun.elapsed();
    let answered = probes.answered()?;
    println!("  relayed after {took:?}, {answered} of 350 echoes answered in seven seconds");
    ensure!(took <= Duration::from_secs(8), "relayed after {took:?}");
    ensure!(answered >= 200, "{answered} of 350");
    Ok(())
}
