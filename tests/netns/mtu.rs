//! Underlays that carry less than they promise.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::underlay::{
    Capture, FIVE, Transfer, datagrams, heal, ingress, pair4, path, plain_cable,
};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(packet_above_the_path_is_answered_with_its_size),
    ci!(
        lowering_the_underlay_stalls_no_tcp,
        "iperf3",
        "ss",
        "ethtool"
    ),
    ci!(silent_hole_stalls_no_tcp, "iperf3", "ss", "ethtool"),
    ci!(no_datagram_of_ours_is_fragmented, "iperf3", "ss"),
];

const THREE: Duration = Duration::from_secs(3);

/// Sends one echo request of `size` bytes, IP header included, that may not be cut.
fn probe(from: &Host, to: &str, size: u32) -> Result<String> {
    let payload = (size - 28).to_string();
    let answer = from.ns().run(&[
        "ping", "-n", "-M", "do", "-s", &payload, "-c", "1", "-W", "1", to,
    ])?;
    Ok(answer.out + &answer.err)
}

/// Whether a packet of that size arrives.
fn fits(from: &Host, to: &str, size: u32) -> Result<bool> {
    // The kernel remembers what it was told for ten minutes.
    from.ns().ip(&["route", "flush", "cache"])?;
    Ok(probe(from, to, size)?.contains(" 1 received"))
}

/// A10: whoever sends too much is told.
fn packet_above_the_path_is_answered_with_its_size(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let to_b = b.overlay("lab")?.0;
    until("a full packet passes", SOON, || fits(&a, &to_b, 1400))?;
    // The interface itself refuses what is larger than the overlay's MTU.
    let said = probe(&a, &to_b, 1421)?;
    ensure!(
        said.contains("message too long") && said.contains("mtu=1400"),
        "{said}"
    );
    // What the TUN takes and the path does not: answered from inside.
    for host in [&a, &b] {
        host.ns().ip(&["link", "set", "eth0", "mtu", "1400"])?;
    }
    let mut said = String::new();
    let told = until("a packet that is too large is answered", SOON, || {
        a.ns().ip(&["route", "flush", "cache"])?;
        said = probe(&a, &to_b, 1400)?;
        Ok(said.contains("Frag needed")
            || said.contains("Message too long")
            || said.contains("message too long"))
    });
    for host in [&a, &b] {
        host.ns().ip(&["link", "set", "eth0", "mtu", "1500"])?;
    }
    told?;
    println!(
        "  {}",
        said.lines().find(|l| l.contains("mtu")).unwrap_or_default()
    );
    let digits = said
        .split("mtu")
        .nth(1)
        .unwrap_or_default()
        .split(|c: char| !c.is_ascii_digit());
    let size: u32 = digits.into_iter().find_map(|d| d.parse().ok()).unwrap_or(0);
    // 1400 less IP, UDP, header, trailer and tag; what IPv6 needs is carried always.
    ensure!(
        (1280..=1332).contains(&size),
        "the size told is {size}: {said}"
    );
    Ok(())
}

/// A10: the link itself carries less from now on.
fn lowering_the_underlay_stalls_no_tcp(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let to_b = b.overlay("lab")?.0;
    [&a, &b].iter().try_for_each(|h| plain_cable(lab, h))?;
    until("a full packet passes", SOON, || fits(&a, &to_b, 1400))?;
    let transfer = Transfer::start(&a, &b, 16, "100M")?;
    for mtu in ["1300", "1280"] {
        std::thread::sleep(Duration::from_secs(4));
        for host in [&a, &b] {
            host.ns().ip(&["link", "set", "eth0", "mtu", mtu])?;
            lab.switch()
                .ip(&["link", "set", &Lab::port(host), "mtu", mtu])?;
        }
    }
    let flow = transfer.wait(30)?;
    println!(
        "  {} MB, longest stall {:?}",
        flow.bytes / 1_000_000,
        flow.stall()
    );
    ensure!(
        flow.stall() <= THREE,
        "TCP stood still for {:?}: {:?}",
        flow.stall(),
        flow.steps
    );
    // Datagrams carry less than 1280 inside now. IPv6 promises that much, and who lets IPv4 be cut waits for no answer: the
    // stream carries both whole.
    let to_b6 = b.overlay("lab")?.1;
    let passes = |to: &str, cut: &str, payload: &str| -> Result<bool> {
        let answer = a.ns().run(&[
            "ping", "-n", "-M", cut, "-s", payload, "-c", "1", "-W", "1", to,
        ])?;
        ensure!(answer.code == 0, "{answer}");
        Ok(true)
    };
    until("an IPv6 packet of 1280 bytes passes", SOON, || {
        passes(&to_b6, "do", "1232")
    })?;
    until("an IPv4 packet that may be cut passes", SOON, || {
        passes(&to_b, "dont", "1392")
    })?;
    let said = probe(&a, &to_b, 1280)?;
    ensure!(
        said.contains("mtu"),
        "an IPv4 packet that may not be cut is answered: {said}"
    );
    for host in [&a, &b] {
        lab.switch()
            .ip(&["link", "set", &Lab::port(host), "mtu", "1500"])?;
        host.ns().ip(&["link", "set", "eth0", "mtu", "1500"])?;
    }
    datagrams(&a, &b, FIVE)
}

/// A10: nobody tells that large datagrams are dropped.
fn silent_hole_stalls_no_tcp(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let to_b = b.overlay("lab")?.0;
    [&a, &b].iter().try_for_each(|h| plain_cable(lab, h))?;
    until("a full packet passes", SOON, || fits(&a, &to_b, 1400))?;
    for longest in [1450, 1360] {
        let transfer = Transfer::start(&a, &b, 10, "100M")?;
        std::thread::sleep(THREE);
        // Nobody is told. At this hook a packet has its IP header, and not the Ethernet one, in its length.
        let rule = format!("meta l4proto udp meta length > {longest} counter drop");
        ingress(lab, "hole", &[&a, &b], &[&rule])?;
        let flow = transfer.wait(30)?;
        println!(
            "  hole at {longest}: {} MB, longest stall {:?}, {}",
            flow.bytes / 1_000_000,
            flow.stall(),
            path(&a, "b")?
        );
        ensure!(
            flow.stall() <= THREE,
            "TCP stood still for {:?}: {:?}",
            flow.stall(),
            flow.steps
        );
        let carrier = path(&a, "b")?;
        ensure!(
            carrier["carrier"] == "datagram",
            "the hole is wide enough for datagrams: {carrier}"
        );
        heal(lab, "hole")?;
    }
    // A larger size is tried again once a minute.
    until(
        "a full packet passes again",
        Duration::from_secs(90),
        || fits(&a, &to_b, 1400),
    )
    .map(drop)
}

/// A10: on no link is a datagram cut.
fn no_datagram_of_ours_is_fragmented(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let capture = Capture::start(lab, lab.switch(), &Lab::port(&a), "fragments")?;
    let transfer = Transfer::start(&a, &b, 6, "50M")?;
    std::thread::sleep(Duration::from_secs(2));
    for host in [&a, &b] {
        host.ns().ip(&["link", "set", "eth0", "mtu", "1340"])?;
    }
    let flow = transfer.wait(20)?;
    for host in [&a, &b] {
        host.ns().ip(&["link", "set", "eth0", "mtu", "1500"])?;
    }
    ensure!(
        flow.stall() <= THREE,
        "TCP stood still for {:?}: {:?}",
        flow.stall(),
        flow.steps
    );
    let (_, frames) = capture.stop()?;
    // IPv4 with an offset or more to come, IPv6 with a fragment header.
    let fragment = |f: &&Vec<u8>| match f.get(12..14) {
        Some([8, 0]) => f.get(20..22).is_some_and(|w| w[0] & 0x3f != 0 || w[1] != 0),
        Some([0x86, 0xdd]) => f.get(20) == Some(&44),
        _ => false,
    };
    let count = frames.iter().filter(fragment).count();
    ensure!(
        count == 0,
        "{count} of {} frames are fragments",
        frames.len()
    );
    Ok(())
}
