//! The network that a machine is in turns on it: routes that are handed out to draw the overlay's packets into the clear, and
//! addresses by which the overlay would lead through itself.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::drive::admit;
use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::reach::configure;
use crate::surroundings::{PROMISED, not_told, told};
use crate::tool::frame;
use crate::underlay::{Capture, FIVE, PORT, datagrams, mac};

pub const CASES: &[Case] = &[
    fast!(routes_that_a_rogue_router_hands_out_draw_no_packet_of_the_overlay),
    fast!(an_address_inside_the_overlay_is_no_way_to_a_peer_and_is_refused_with_the_reason),
];

/// What the packets hold that nobody but the two members may see.
const CANARY: &[u8; 12] = b"\xde\xad\xbe\xef\xca\xfe\xde\xad\xbe\xef\xca\xfe";

/// Twenty echoes whose bytes tell them from anything else; how many were answered.
fn echoes(from: &Host, to: &str) -> Result<usize> {
    let words = [
        "ping",
        "-n",
        "-c",
        "20",
        "-i",
        "0.05",
        "-W",
        "1",
        "-p",
        "deadbeefcafe",
        to,
    ];
    let said = from.ns().run(&words)?.out;
    Ok(said.matches(" bytes from ").count())
}

/// Frames that show the canary, or an address of the overlay.
fn in_clear<'a>(frames: &'a [Vec<u8>], addresses: &[&str]) -> Vec<&'a Vec<u8>> {
    let mut needles = vec![CANARY.to_vec()];
    for address in addresses {
        needles.push(match address.parse() {
            Ok(std::net::IpAddr::V4(ip)) => ip.octets().to_vec(),
            Ok(std::net::IpAddr::V6(ip)) => ip.octets().to_vec(),
            Err(_) => continue,
        });
    }
    let shows = |frame: &&Vec<u8>| {
        let mut needles = needles.iter();
        needles.any(|n| frame.windows(n.len()).any(|part| part == n.as_slice()))
    };
    frames.iter().filter(shows).collect()
}

/// The Ethernet address that a frame comes from.
fn hardware(frame: &[u8]) -> String {
    let bytes = frame.get(6..12).unwrap_or_default();
    let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

/// Two members, of which `a` believes every router.
fn pair(lab: &Lab) -> Result<(Rc<Host>, Rc<Host>)> {
    let a = lab.host("a")?;
    a.ns().ok(&[
        "sysctl",
        "-qw",
        "net.ipv6.conf.eth0.accept_ra=2",
        "net.ipv6.conf.eth0.accept_ra_rt_info_max_plen=128",
    ])?;
    a.rebase()?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let b = lab.node("b")?;
    admit(&a, &b, "member")?;
    datagrams(&a, &b, FIVE)?;
    Ok((a, b))
}

/// A15: routes of DHCP's option 121 and of router advertisements, all more specific than the overlay's own; a local network
/// that says it is the overlay (LocalNet); and a peer's address that leads to the attacker (ServerIP).
fn routes_that_a_rogue_router_hands_out_draw_no_packet_of_the_overlay(lab: &Lab) -> Result<()> {
    let (a, b) = pair(lab)?;
    let rogue = lab.host("rogue")?;
    let (b4, b6) = b.overlay("lab")?;
    let pool = b4.split('.').take(2).collect::<Vec<_>>().join(".");
    let capture = Capture::start(lab, rogue.ns(), "eth0", "rogue")?;

    let host4 = format!("{b4}/32");
    let pool4 = format!("{pool}.0.0/16");
    for to in [&host4, &pool4, "0.0.0.0/1", "128.0.0.0/1"] {
        let via = rogue.under4();
        a.ns().ip(&[
            "route", "add", to, "via", via, "dev", "eth0", "proto", "dhcp",
        ])?;
    }
    let words = ["advertise", "eth0", &format!("{b6}/128")];
    let said = rogue.ns().socket(&words)?;
    ensure!(said.code == 0, "{said}");
    until("the advertised route is there", SOON, || {
        let routes = a.ns().ip(&["-6", "route", "show", "proto", "ra"])?;
        Ok(routes.contains(&b6) && routes.contains("default"))
    })?;
    for to in [&b4, &b6] {
        let way = a.ns().ip(&["route", "get", to])?;
        ensure!(way.contains(" dev bw-lab"), "{way}");
        let answered = echoes(&a, to)?;
        ensure!(answered == 20, "{answered} of 20 from {to}");
    }

    let lease = format!("{pool}.250.9/16");
    a.ns().ip(&["addr", "add", &lease, "dev", "eth0"])?;
    let took = told(&a, "E-CIDR-OVERLAP", &["eth0", &pool4])?;
    ensure!(took <= PROMISED, "told after {took:?}");
    let answered = echoes(&a, &b4)?;
    ensure!(answered == 20, "{answered} of 20 beside the lease");
    a.ns().ip(&["addr", "del", &lease, "dev", "eth0"])?;
    not_told(&a, "E-CIDR-OVERLAP")?;

    let via4 = [b.under4(), "via", rogue.under4()];
    let via6 = [b.under6(), "via", rogue.under6()];
    for (family, words) in [("-4", via4), ("-6", via6)] {
        a.ns()
            .ip(&[&[family, "route", "add"], &words[..], &["proto", "dhcp"]].concat())?;
    }
    // Whether packets arrive is up to who is on the way; what they hold is not.
    for to in [&b4, &b6] {
        let answered = echoes(&a, to)?;
        println!("  {answered} of 20 by way of the attacker");
    }
    for family in ["-4", "-6"] {
        for proto in ["dhcp", "ra"] {
            // The advertisement went to everybody.
            for host in [&a, &b] {
                host.ns().ip(&[family, "route", "flush", "proto", proto])?;
            }
        }
    }
    a.ns().reaches(&b4, Duration::from_secs(15))?;
    let (_, frames) = capture.stop()?;
    let sealed = frames.iter().filter_map(|f| frame::udp(f));
    let sealed = sealed.filter(|udp| udp.to.port() == PORT).count();
    // Its own advertisement names the address as well.
    let own = mac(&rogue)?;
    let others: Vec<Vec<u8>> = frames
        .iter()
        .filter(|f| hardware(f) != own)
        .cloned()
        .collect();
    let clear = in_clear(&others, &[&b4, &b6]);
    println!(
        "  {} frames came to the attacker, {sealed} sealed",
        frames.len()
    );
    ensure!(
        clear.is_empty(),
        "{} of {} show what is inside, as {:02x?}",
        clear.len(),
        frames.len(),
        clear[0]
    );
    Ok(())
}

/// A16: the overlay would carry its own datagrams round and round.
fn an_address_inside_the_overlay_is_no_way_to_a_peer_and_is_refused_with_the_reason(
    lab: &Lab,
) -> Result<()> {
    let (a, b) = pair(lab)?;
    let (b4, b6) = b.overlay("lab")?;
    let capture = Capture::start(lab, a.ns(), "bw-lab", "inside")?;
    for at in [
        format!("/ip4/{b4}/udp/{PORT}/quic-v1"),
        format!("/ip4/{b4}/tcp/{PORT}"),
        format!("/ip6/{b6}/udp/{PORT}/quic-v1"),
    ] {
        let said = a.byway(&["peer", "connect", &at])?;
        ensure!(said.code != 0 && said.err.contains("overlay"), "{said}");
    }
    // A member that tells such addresses of itself, and has no other, is reached as before.
    configure(
        &b,
        &format!(
            "[transport]\nadvertise = [\"/ip4/{b4}/udp/{PORT}/quic-v1\", \"/ip6/{b6}/tcp/{PORT}\"]\n"
        ),
    )?;
    b.terminate()?;
    b.start()?;
    a.ns().reaches(&b4, SOON)?;
    datagrams(&a, &b, FIVE)?;
    ensure!(echoes(&a, &b4)? == 20 && echoes(&a, &b6)? == 20);
    let (_, frames) = capture.stop()?;
    ensure!(frames.len() >= 80, "{} packets inside", frames.len());
    let ours = |f: &&Vec<u8>| {
        let udp = frame::inner_udp(f);
        udp.is_some_and(|u| u.from.port() == PORT || u.to.port() == PORT)
    };
    let twice = frames.iter().filter(ours).count();
    ensure!(twice == 0, "{twice} datagrams of ours inside the overlay");
    let shown = a.json(&["peer", "show", "b"])?;
    let tried = shown["tried"].to_string();
    ensure!(!tried.contains(&b4) && !tried.contains(&b6), "{tried}");
    Ok(())
}
