//! Bad lines between members that stand behind NATs: loss, jitter, reorder, duplicates, and routers that drop what is large.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::internet::Uplink;
use crate::lab::nat::{Kind, Weather};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::reach::{Two, found, two};
use crate::underlay::{FIVE, Transfer, datagrams, path};
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(loss_of_one_five_and_twenty_percent_adds_none_and_resets_nothing),
    ci!(
        jitter_reorder_and_duplicates_deliver_no_packet_twice,
        "iperf3",
        "ss"
    ),
    ci!(
        a_router_that_drops_large_datagrams_stalls_no_tcp,
        "iperf3",
        "ss"
    ),
    long!(
        a_narrow_line_is_used_whole_and_keeps_no_ping_waiting,
        "iperf3",
        "ss"
    ),
];

/// Two behind full cone NATs with a direct path.
fn pair(lab: &Lab) -> Result<Two> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::full_cone());
    let two = two(&inet, &nat, &nat)?;
    found(&two.a, &two.b)?;
    datagrams(&two.a, &two.b, FIVE)?;
    Ok(two)
}

/// A01.
fn loss_of_one_five_and_twenty_percent_adds_none_and_resets_nothing(lab: &Lab) -> Result<()> {
    let two = pair(lab)?;
    let inside = two.a.overlay("lab")?.0;
    let session = |two: &Two| -> Result<serde_json::Value> {
        Ok(two.b.json(&["peer", "show", "a"])?["sessions"][0]["since"].clone())
    };
    let since = session(&two)?;
    for percent in [1_u32, 5, 20] {
        // On the line of one site, both ways: an echo has to pass it twice.
        two.sites[0].weather(&Weather {
            loss: u64::from(percent) * 1000,
            ..Weather::default()
        });
        let count = 1000;
        let answered = two.b.ns().probe(&inside, count, 10)?.answered()?;
        let passes = f64::from(100 - percent) / 100.0;
        let expected = f64::from(count) * passes * passes;
        println!("  {percent} %: {answered} of {count} answered, {expected:.0} expected");
        ensure!(
            f64::from(answered) >= expected - 40.0,
            "{percent} %: {answered}"
        );
        for (host, name) in [(&two.a, "x"), (&two.b, "y")] {
            let name = format!("{name}{percent}");
            host.json(&["dns", "add", "lab", &name, "10.0.0.1"])?;
        }
        let kind = path(&two.b, "a")?;
        ensure!(
            kind["kind"] == "direct" && kind["carrier"] == "datagram",
            "{kind}"
        );
    }
    ensure!(session(&two)? == since, "the session began anew");
    Ok(())
}

/// Megabytes in five seconds of TCP over the line of a site, without byway, from the relay to a host inside.
fn plain(two: &Two) -> Result<f64> {
    let address = two.relay.host.under4();
    let mut server = two
        .relay
        .host
        .ns()
        .command(&["iperf3", "-s", "-1", "-B", address])
        .stdout(Stdio::null())
        .spawn()
        .context("start iperf3")?;
    until("iperf3 listens", FIVE, || {
        let listening = ["ss", "-Hltn", "sport = 5201"];
        Ok(two.relay.host.ns().ok(&listening)?.contains(address))
    })?;
    let said = two
        .b
        .ns()
        .ok(&["iperf3", "-c", address, "-R", "-J", "-t", "5", "-b", "20M"]);
    let _ = server.kill();
    let _ = server.wait();
    let said: serde_json::Value = serde_json::from_str(&said?)?;
    let bytes = said["end"]["sum_received"]["bytes"].as_f64();
    Ok(bytes.context("no bytes")? / 1e6)
}

/// A02.
fn jitter_reorder_and_duplicates_deliver_no_packet_twice(lab: &Lab) -> Result<()> {
    let two = pair(lab)?;
    let weather = Weather {
        delay: Duration::from_millis(25),
        jitter: Duration::from_millis(5),
        duplicate: 10_000,
        reorder: 25_000,
        ..Weather::default()
    };
    two.sites[1].weather(&weather);
    let inside = two.a.overlay("lab")?.0;
    let ping = [
        "ping", "-n", "-q", "-c", "300", "-i", "0.02", "-W", "2", &inside,
    ];
    let said = two.b.ns().run(&ping)?.out;
    ensure!(
        said.contains("300 received") && !said.contains("duplicates"),
        "{said}"
    );
    let flow = Transfer::start(&two.a, &two.b, 5, "20M")?.wait(60)?;
    let (got, plain) = (flow.bytes as f64 / 1e6, plain(&two)?);
    println!("  {got:.1} MB in 5 s, {plain:.1} MB without byway");
    ensure!(got >= 0.7 * plain, "{got:.1} MB of {plain:.1}");
    let replayed = two.b.drops("lab", "replayed")?;
    ensure!(replayed > 20, "the line doubled nothing: {replayed}");
    Ok(())
}

/// A10: the hole appears while TCP flows.
fn a_router_that_drops_large_datagrams_stalls_no_tcp(lab: &Lab) -> Result<()> {
    let two = pair(lab)?;
    let transfer = Transfer::start(&two.a, &two.b, 15, "5M")?;
    std::thread::sleep(Duration::from_secs(5));
    // Probes of the usual size pass; full packets do not.
    two.sites[0].weather(&Weather {
        larger_than: Some(1300),
        ..Weather::default()
    });
    let flow = transfer.wait(60)?;
    println!("  TCP stood still for {:?}", flow.stall());
    ensure!(flow.stall() <= Duration::from_secs(4), "{:?}", flow.steps);
    ensure!(
        flow.steps.iter().rev().take(4).all(|s| *s > 0),
        "{:?}",
        flow.steps
    );
    until("the path says what it carries", SOON, || {
        let shown = two.b.json(&["status"])?["subnets"][0]["peers"][0].clone();
        let mtu = shown["mtu"].as_u64().context("no mtu")?;
        ensure!(mtu <= 1300, "{shown}");
        Ok(true)
    })
    .map(drop)
}

/// The mean round trip of so many echoes, a tenth of a second apart, in milliseconds.
fn rtt(from: &Host, to: &str, count: u32) -> Result<f64> {
    let count = count.to_string();
    let words = ["ping", "-n", "-q", "-c", &count, "-i", "0.1", "-W", "2", to];
    let said = from.ns().run(&words)?.out;
    let mean = said
        .split(" = ")
        .nth(1)
        .and_then(|all| all.split('/').nth(1));
    mean.and_then(|mean| mean.parse().ok())
        .with_context(|| format!("ping said {said:?}"))
}

/// A04: the queue of the line is the only one. What byway itself keeps waiting would come on top of its fifty milliseconds.
fn a_narrow_line_is_used_whole_and_keeps_no_ping_waiting(lab: &Lab) -> Result<()> {
    let two = pair(lab)?;
    two.sites[1].weather(&Weather {
        delay: Duration::from_millis(20),
        rate: Some(20_000_000),
        queue: Duration::from_millis(50),
        ..Weather::default()
    });
    let inside = two.a.overlay("lab")?.0;
    let idle = rtt(&two.b, &inside, 20)?;
    let plain = plain(&two)?;
    let transfer = Transfer::start(&two.a, &two.b, 8, "100M")?;
    std::thread::sleep(Duration::from_secs(2));
    let busy = rtt(&two.b, &inside, 50)?;
    let flow = transfer.wait(60)?;
    // The same five seconds of each: from the third on.
    let late: u64 = flow.steps.iter().skip(4).take(10).sum();
    let got = late as f64 / 1e6;
    println!(
        "  {got:.1} MB in 5 s, {plain:.1} without byway; ping {idle:.1} ms, {busy:.1} beside it"
    );
    ensure!(got >= 0.9 * plain, "{got:.1} MB of {plain:.1}");
    ensure!(
        busy <= idle + 60.0 && busy < 3.0 * idle,
        "{busy:.1} ms beside {idle:.1}"
    );
    Ok(())
}
