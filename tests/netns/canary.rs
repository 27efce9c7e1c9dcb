//! What a listener on the underlay sees of a whole life, and what of ours is inside the overlay.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, text, until};
use crate::tool::frame;
use crate::underlay::{
    Capture, FIVE, PORT, block_udp, carried, datagrams, heal, index, pair, plain_cable, plain_host,
};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(
        nothing_of_a_short_life_is_readable_on_the_underlay,
        "ethtool"
    ),
    ci!(
        nothing_of_a_whole_life_is_readable_on_the_underlay,
        "ethtool"
    ),
    fast!(no_frame_of_ours_is_inside_the_overlay),
];

const CANARY: &str = "CANARY-6f1d-thirty-gold-birds";

/// Everything that must not be seen, and what it is.
fn secrets(hosts: &[Rc<Host>]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all: Vec<(String, Vec<u8>)> = vec![
        ("the canary".to_owned(), CANARY.into()),
        ("the name of the subnet".to_owned(), "lab.internal".into()),
        (
            "the name of a workload".to_owned(),
            "goldbird-workload".into(),
        ),
    ];
    for host in hosts {
        let (v4, v6) = host.overlay("lab")?;
        let (four, six): (Ipv4Addr, Ipv6Addr) = (v4.parse()?, v6.parse()?);
        all.push((format!("the inner address {v4} as text"), v4.into()));
        all.push((format!("the inner address {v6} as text"), v6.into()));
        all.push((
            format!("the inner address {four} in bytes"),
            four.octets().into(),
        ));
        all.push((
            format!("the inner address {six} in bytes"),
            six.octets().into(),
        ));
        all.push((
            format!("the member name {}", host.name()),
            host.name().into(),
        ));
    }
    Ok(all)
}

fn holds(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else {
        return false;
    };
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|b| b == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(needle) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

/// The canary over TCP and UDP, both families, and names asked for and answered across.
fn talk(from: &Host, to: &Host, workload: &Netns) -> Result<()> {
    to.ok(&["subnet", "host", "lab", "tcp/7000,udp/7000"])?;
    for address in [to.overlay("lab")?.0, to.overlay("lab")?.1] {
        from.ns().reaches(&address, SOON)?;
        for proto in ["tcp", "udp"] {
            let _server = to.ns().serve(proto, &address, 7000)?;
            let said =
                from.ns()
                    .socket(&["say", proto, &address, "7000", &[CANARY; 20].join(" ")])?;
            ensure!(said.code == 0, "{said}");
        }
        let reply = from
            .ns()
            .dig(&address, &["goldbird-workload.lab.internal", "A"])?;
        ensure!(!reply.answers.is_empty(), "{reply:?}");
    }
    workload.reaches(&from.overlay("lab")?.0, SOON)?;
    Ok(())
}

fn no_trace(frames: &[Vec<u8>], secrets: &[(String, Vec<u8>)]) -> Result<()> {
    ensure!(
        frames.len() > 50,
        "only {} frames were captured",
        frames.len()
    );
    let bytes: usize = frames.iter().map(Vec::len).sum();
    println!("  {} frames, {} kB", frames.len(), bytes / 1000);
    // The control of the control: an underlay address is in it.
    ensure!(
        frames.iter().any(|f| holds(f, &[10, 99, 0, 1])),
        "the capture holds nothing"
    );
    for (what, secret) in secrets {
        let hits: Vec<usize> = frames
            .iter()
            .enumerate()
            .filter(|(_, f)| holds(f, secret))
            .map(|(number, _)| number + 1)
            .collect();
        // Four bytes meet by chance once in four thousand million places.
        let chance = if secret.len() <= 4 { 1 } else { 0 };
        ensure!(
            hits.len() <= chance,
            "{what} is readable in {} frames, first number {:?}",
            hits.len(),
            hits.first()
        );
    }
    Ok(())
}

/// Join, names, traffic, the stream, a crash, a leave; with `rekey`, also new keys inside the live session.
fn life(lab: &Lab, rekey: bool) -> Result<()> {
    let hosts: Vec<Rc<Host>> = ["goldbird-one", "goldbird-two"]
        .iter()
        .map(|n| {
            if rekey {
                plain_host(lab, n)
            } else {
                lab.host(n)
            }
        })
        .collect::<Result<_>>()?;
    let (a, b) = (&hosts[0], &hosts[1]);
    [a, b].iter().try_for_each(|h| plain_cable(lab, h))?;
    let capture = Capture::start(lab, lab.switch(), &Lab::port(b), "life")?;
    a.start()?;
    b.start()?;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&["join", &invite])?;
    let space = lab.workload("w")?;
    b.attach(&space, "lab", "goldbird-workload")?;
    let secrets = secrets(&hosts)?;
    datagrams(a, b, FIVE)?;
    talk(a, b, &space)?;
    if rekey {
        let first = index(lab, a, b)?;
        until("the key is another one", Duration::from_secs(150), || {
            Ok(index(lab, a, b)? != first)
        })?;
        talk(a, b, &space)?;
    }
    block_udp(lab, &[a, b])?;
    carried(a, b.name(), "stream", Duration::from_secs(8))?;
    talk(a, b, &space)?;
    heal(lab, "noudp")?;
    datagrams(a, b, FIVE)?;
    b.kill9()?;
    b.start()?;
    datagrams(a, b, SOON)?;
    talk(a, b, &space)?;
    b.ok(&["detach", "goldbird-workload"])?;
    b.ok(&["leave", "lab"])?;
    until("a heard of it", SOON, || Ok(a.members("lab")?.len() == 1))?;
    let (_, frames) = capture.stop().context("the capture of a life")?;
    no_trace(&frames, &secrets)
}

fn nothing_of_a_short_life_is_readable_on_the_underlay(lab: &Lab) -> Result<()> {
    life(lab, false)
}

fn nothing_of_a_whole_life_is_readable_on_the_underlay(lab: &Lab) -> Result<()> {
    life(lab, true)
}

fn no_frame_of_ours_is_inside_the_overlay(lab: &Lab) -> Result<()> {
    let (a, b) = pair(lab)?;
    let capture = Capture::start(lab, a.ns(), "bw-lab", "inside")?;
    let (v4, v6) = b.overlay("lab")?;
    // Whatever this is answered with, no path may lead through the overlay itself.
    for at in [
        format!("/ip4/{v4}/udp/{PORT}/quic-v1"),
        format!("/ip4/{v4}/tcp/{PORT}"),
        format!("/ip6/{v6}/tcp/{PORT}"),
    ] {
        a.byway(&["peer", "connect", &at])?;
    }
    a.ns()
        .ok(&["ping", "-n", "-q", "-c", "100", "-i", "0.05", &v4])?;
    a.ns()
        .ok(&["ping", "-n", "-q", "-c", "20", "-i", "0.05", &v6])?;
    let (_, frames) = capture.stop()?;
    ensure!(
        frames.len() >= 200,
        "only {} packets were seen inside",
        frames.len()
    );
    let ours = |f: &&Vec<u8>| {
        // From an IP header on; TCP has its ports where UDP has them.
        let udp = frame::inner_udp(f).is_some_and(|u| u.from.port() == PORT || u.to.port() == PORT);
        udp || (f.get(9) == Some(&6)
            && f.get(20..24)
                .is_some_and(|p| p[..2] == PORT.to_be_bytes() || p[2..] == PORT.to_be_bytes()))
    };
    let count = frames.iter().filter(ours).count();
    ensure!(
        count == 0,
        "{count} packets of the underlay's port are inside the overlay"
    );
    datagrams(&a, &b, FIVE)
}
