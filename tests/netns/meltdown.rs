//! TCP inside a stream: where datagrams do not pass, packets ride a connection that loses nothing and may grow late. What waits in
//! front of it is bounded by time, so that an inner TCP sees loss and not seconds of delay.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::lab::internet::{Internet, Site, Uplink};
use crate::lab::nat::{Kind, Weather};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::reach::{configure, found, relay_at, relayed, reserved, start};
use crate::underlay::{FIVE, Transfer, carried};
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(
        tcp_over_a_lossy_tcp_stream_keeps_no_ping_waiting_for_seconds,
        "iperf3",
        "ss"
    ),
    long!(
        tcp_over_a_lossy_quic_stream_keeps_no_ping_waiting_for_seconds,
        "iperf3",
        "ss"
    ),
    long!(
        tcp_over_lossy_streams_of_a_relay_keeps_no_ping_waiting_for_seconds,
        "iperf3",
        "ss"
    ),
    long!(
        a_stream_over_a_clean_cable_is_used_whole_both_ways,
        "iperf3",
        "ss"
    ),
];

/// Seconds of load.
const LOAD: u32 = 6;

/// A member's line: 50 ms there and back, and one packet of a hundred lost each way.
fn weather() -> Weather {
    Weather {
        delay: Duration::from_millis(25),
        loss: 1000,
        ..Weather::default()
    }
}

/// Round trips beside a load.
struct Pings {
    /// In milliseconds, the shortest first.
    times: Vec<f64>,
    sent: u32,
}

impl Pings {
    /// The round trip that so many percent do not exceed.
    fn percentile(&self, percent: usize) -> f64 {
        let last = self.times.len().saturating_sub(1);
        let at = (self.times.len() * percent / 100).min(last);
        self.times.get(at).copied().unwrap_or(f64::INFINITY)
    }
}

impl std::fmt::Display for Pings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (half, most) = (self.percentile(50), self.percentile(99));
        let lost = self.sent as usize - self.times.len();
        write!(f, "ping p50 {half:.0} ms, p99 {most:.0} ms, {lost} lost")
    }
}

/// Echoes fifty times a second, for so many.
fn pings(from: &Host, to: &str, count: u32) -> Result<Pings> {
    let words = count.to_string();
    let words = ["ping", "-n", "-c", &words, "-i", "0.02", "-W", "3", to];
    let said = from.ns().run(&words)?.out;
    let time = |line: &str| line.split("time=").nth(1)?.split(' ').next()?.parse().ok();
    let mut times: Vec<f64> = said.lines().filter_map(time).collect();
    times.sort_by(f64::total_cmp);
    ensure!(!times.is_empty(), "ping said {said:?}");
    Ok(Pings { times, sent: count })
}

/// What a load from `from` to `to` does to pings beside it, once it has run for a second and a half; they come back behind
/// its packets.
fn loaded(from: &Host, to: &Host) -> Result<(Pings, f64)> {
    let transfer = Transfer::start(from, to, LOAD, "0")?;
    std::thread::sleep(Duration::from_millis(1500));
    let inside = from.overlay("lab")?.0;
    let pings = pings(to, &inside, 50 * (LOAD - 2))?;
    let flow = transfer.wait(60)?;
    let rate = flow.bytes as f64 * 8.0 / 1e6 / f64::from(LOAD);
    Ok((pings, rate))
}

/// Judges a stream under load: of its own a round trip has 50 ms, and 150 where a packet of the stream is lost once and once
/// more. Without a bound it takes seconds.
fn judge(from: &Host, to: &Host, site: &Site, longest: f64) -> Result<()> {
    site.weather(&weather());
    let (pings, rate) = loaded(from, to)?;
    println!("  {pings}, {rate:.1} Mbit/s");
    ensure!(pings.percentile(99) <= longest, "{pings}");
    ensure!(rate >= 1.0, "{rate:.1} Mbit/s");
    Ok(())
}

/// Has the sockets of a host fill whatever queue there is, outside as inside, as what most machines use does; this one every
/// kernel has.
fn greedy(host: &Host) -> Result<()> {
    let reno = "net.ipv4.tcp_congestion_control=reno";
    host.ns().ok(&["sysctl", "-qw", reno]).map(drop)
}

/// A public host `a`, and `b` behind what `uplink` says.
fn pair(inet: &Internet<'_>, uplink: &Uplink) -> Result<(Rc<Host>, Rc<Site>, Rc<Host>)> {
    let a = inet.host("a", 1)?;
    let (site, b) = inet.behind("b", 11, uplink)?;
    for host in [&a, &b] {
        greedy(host)?;
        host.start()?;
    }
    found(&a, &b)?;
    carried(&b, "a", "stream", SOON)?;
    carried(&a, "b", "stream", SOON)?;
    Ok((a, site, b))
}

fn tcp_over_a_lossy_tcp_stream_keeps_no_ping_waiting_for_seconds(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let blocked = Uplink {
        udp_blocked: true,
        ..Uplink::behind(Kind::port_restricted())
    };
    let (a, site, b) = pair(&inet, &blocked)?;
    judge(&a, &b, &site, 600.0)
}

fn tcp_over_a_lossy_quic_stream_keeps_no_ping_waiting_for_seconds(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    // QUIC passes, sealed datagrams and TCP do not.
    let rules = "table inet quic { chain f { type filter hook forward priority 0; \
                 tcp dport 4100 drop; udp dport 4100 @th,64,8 < 0x40 drop; udp sport 4100 @th,64,8 < 0x40 drop; }; }";
    inet.space().ok(&["nft", rules])?;
    let (a, site, b) = pair(&inet, &Uplink::behind(Kind::full_cone()))?;
    let transport = crate::underlay::path(&b, "a")?["transport"].clone();
    ensure!(transport == "quic", "{transport}");
    judge(&a, &b, &site, 600.0)
}

fn tcp_over_lossy_streams_of_a_relay_keeps_no_ping_waiting_for_seconds(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let blocked = Uplink {
        udp_blocked: true,
        ..Uplink::behind(Kind::port_restricted())
    };
    let (host, mut sites) = (inet.host("relay", 1)?, Vec::new());
    greedy(&host)?;
    let relay = relay_at(host)?;
    let mut hosts = Vec::new();
    for (name, number) in [("a", 10), ("b", 11)] {
        let (site, host) = inet.behind(name, number, &blocked)?;
        greedy(&host)?;
        start(&host, &[&relay])?;
        reserved(&host)?;
        sites.push(site);
        hosts.push(host);
    }
    let [a, b] = <[Rc<Host>; 2]>::try_from(hosts).map_err(|_| anyhow!("two hosts"))?;
    found(&a, &b)?;
    for (of, to) in [(&a, "b"), (&b, "a")] {
        relayed(of, to, SOON)?;
    }
    until("packets pass by the circuit", FIVE, || {
        let path = crate::underlay::path(&b, "a")?;
        let carrier = path["carrier"].as_str().context("a carrier")?;
        Ok(carrier == "stream")
    })?;
    let [_, site] = sites.as_slice() else {
        return Err(anyhow!("two sites"));
    };
    judge(&a, &b, site, 600.0)
}

/// What bounds a slow line is no bound to a fast one: receipts go beside a load in each direction.
fn a_stream_over_a_clean_cable_is_used_whole_both_ways(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    for host in [&a, &b] {
        configure(host, "[transport]\nlisten = [\"tcp/4100\"]\n")?;
        host.start()?;
    }
    found(&a, &b)?;
    carried(&b, "a", "stream", SOON)?;
    carried(&a, "b", "stream", SOON)?;
    let (pings, rate) = loaded(&a, &b)?;
    println!("  one way: {pings}, {rate:.0} Mbit/s");
    ensure!(rate >= 50.0 && pings.percentile(99) <= 100.0, "{pings}");
    let both = [(&a, &b), (&b, &a)];
    let flows = both.map(|(from, to)| Transfer::start(from, to, 4, "0"));
    for flow in flows {
        let rate = flow?.wait(60)?.bytes as f64 * 8.0 / 1e6 / 4.0;
        println!("  both ways: {rate:.0} Mbit/s");
        ensure!(rate >= 20.0, "{rate:.0} Mbit/s");
    }
    Ok(())
}
