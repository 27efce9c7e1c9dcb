//! What `probe` says of a path, beside what the path is made to carry.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, until};
use crate::underlay::{FIVE, PORT, block_udp, carried, heal, ingress, pair, plain_cable};

pub const CASES: &[Case] = &[fast!(
    a_probe_measures_what_the_carrier_in_use_brings_to_the_peer
)];

fn probe(of: &Host, to: &str) -> Result<(f64, Value)> {
    let told = of.json(&["probe", to])?;
    let number = |field: &str| {
        told[field]
            .as_f64()
            .with_context(|| format!("no {field} in {told}"))
    };
    for field in ["rtt_ms", "control_rtt_ms", "jitter_ms", "loss"] {
        ensure!(number(field)? >= 0.0, "{told}");
    }
    // Control and packets have round trips of their own, over whatever carries each.
    ensure!(number("control_rtt_ms")? > 0.0, "{told}");
    ensure!(number("rtt_ms")? > 0.0 && number("loss")? < 0.5, "{told}");
    Ok((number("mbit")?, told))
}

fn a_probe_measures_what_the_carrier_in_use_brings_to_the_peer(lab: &Lab) -> Result<()> {
    let (a, b) = pair(lab)?;
    // The switch counts single datagrams.
    plain_cable(lab, &b)?;
    let port = PORT.to_string();
    // 17 Mbit a second of what b sends; a short burst passes whole.
    let shaped = format!("udp dport {port} limit rate over 1500/second burst 50 packets drop");
    ingress(lab, "shaped", &[&b], &[&shaped])?;
    let (mbit, told) = probe(&b, "a")?;
    ensure!((8.0..32.0).contains(&mbit), "{told}");
    ensure!(told["mtu"] == 1500, "{told}");
    ensure!(told["path"]["carrier"] == "datagram", "{told}");
    heal(lab, "shaped")?;

    let (free, told) = probe(&b, "a")?;
    ensure!(free > 2.0 * mbit, "{free} Mbit/s after {mbit}: {told}");

    block_udp(lab, &[&a, &b])?;
    carried(&b, "a", "stream", FIVE * 2)?;
    // A stream of QUIC is as dead as the datagrams: it is given up once nothing was heard of it for 12 s.
    until("a stream answers", FIVE * 4, || {
        b.ok(&["ping", "-c", "1", "a"]).map(|_| true)
    })?;
    let (streamed, told) = probe(&b, "a")?;
    ensure!(streamed > mbit, "{told}");
    ensure!(told["mtu"].is_null(), "{told}");
    // Measuring is no traffic of the subnet, and takes none of its packets along.
    let peer = &b.status("lab")?["peers"][0];
    ensure!(peer["tx_bytes"].as_u64() < Some(1_000_000), "{peer}");
    ensure!(b.drops("lab", "queue-full")? == 0, "packets were lost");
    Ok(())
}
