//! What others do to the datagrams: damaged, repeated, forged, copied, drowned.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::drive::resident;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::tool::frame;
use crate::underlay::{
    Capture, FIVE, PORT, Tool, Transfer, counted, datagrams, echoes, heal, index, ingress, mac,
    newest, pair4, path, plain_cable, plain_host, refused, settled, strays, tool, underlay,
};
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(
        flipped_bits_are_counted_and_nothing_damaged_arrives,
        "ethtool"
    ),
    ci!(lost_datagrams_cost_no_session, "ethtool"),
    ci!(replayed_frames_are_counted_and_never_delivered, "ethtool"),
    long!(frames_of_a_former_key_are_dead, "ethtool"),
    ci!(
        frames_swapped_between_two_sessions_are_counted_and_never_delivered,
        "ethtool"
    ),
    ci!(a_million_forged_frames_leave_the_session_as_it_was),
    ci!(flood_of_junk_leaves_tcp_alive, "iperf3", "ss"),
    ci!(copied_frames_from_another_address_move_no_path, "ethtool"),
];

/// Pings that are answered, out of so many a second for a while.
fn answered(from: &Host, to: &str, count: u32) -> Result<u32> {
    from.ns().probe(to, count, 20)?.answered()
}

/// Sealed datagrams that came to the port.
const OURS: &str = "udp dport 4100 @th,64,8 0x04";

/// A03: nothing damaged gets through.
fn flipped_bits_are_counted_and_nothing_damaged_arrives(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let (to_a, to_b) = (a.overlay("lab")?.0, b.overlay("lab")?.0);
    b.ok(&["subnet", "host", "lab", "tcp/7000"])?;
    let _server = b.ns().serve("tcp", &to_b, 7000)?;
    b.ns().reaches(&to_a, SOON)?;
    [&a, &b].iter().try_for_each(|h| plain_cable(lab, h))?;
    let (receiver, session) = (settled(lab, &a, &b)?, Instant::now());
    let before = refused(&b)?;
    // Two places of a frame: its counter, and its ciphertext. The checksum is left alone by the rule, and not looked at by
    // the receiver: a veth vouches for it.
    let flip = |at: u32, parts: u32| {
        format!("{OURS} numgen random mod 100 < {parts} @th,{at},8 set 0x5a counter accept")
    };
    let (counter, sealed) = (flip(128, 5), flip(224, 5));
    ingress(lab, "flip", &[&a], &[&counter, &sealed])?;
    for _ in 0..4 {
        a.ns()
            .tcp(&to_b, 7000, 1 << 20)
            .context("a megabyte there and back, one frame in ten damaged")?;
    }
    let damaged = counted(lab, "flip")?;
    heal(lab, "flip")?;
    ensure!(damaged > 100, "only {damaged} frames were damaged");
    // A byte in 256 is 0x5a already: that frame is whole.
    until("every damaged frame is counted", FIVE, || {
        let now = refused(&b)?;
        let seen = now.0 - before.0 + now.1 - before.1;
        ensure!(
            seen <= damaged && seen * 100 >= damaged * 97,
            "{seen} counted of {damaged}: {now:?} after {before:?}"
        );
        Ok(true)
    })?;
    println!(
        "  {damaged} damaged, counted {:?} after {before:?}",
        refused(&b)?
    );
    same_session(lab, &a, &b, receiver, session)
}

/// The session is the one it was: its receiver index is still in use, unless its time was up anyhow.
fn same_session(lab: &Lab, a: &Host, b: &Host, receiver: u32, since: Instant) -> Result<()> {
    datagrams(a, b, FIVE)?;
    ensure!(
        answered(a, &b.overlay("lab")?.0, 50)? == 50,
        "packets are lost after it"
    );
    let now = index(lab, a, b)?;
    ensure!(
        now == receiver || since.elapsed() > Duration::from_secs(100),
        "the session was begun anew"
    );
    Ok(())
}

fn lost_datagrams_cost_no_session(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let to_b = b.overlay("lab")?.0;
    [&a, &b].iter().try_for_each(|h| plain_cable(lab, h))?;
    let (receiver, session) = (settled(lab, &a, &b)?, Instant::now());
    for (percent, least) in [(1, 960), (5, 860), (20, 560)] {
        let drop = format!("numgen random mod 100 < {percent} counter drop");
        ingress(lab, "loss", &[&a, &b], &[&drop])?;
        let got = answered(&a, &to_b, 1000)?;
        println!("  {percent} %: {got} of 1000 answered");
        // Both ways are lossy: (1-p)^2 answers, and a few percent of chance.
        ensure!(
            got >= least,
            "{got} of 1000 answered at {percent} % loss each way"
        );
        let path = path(&a, "b")?;
        ensure!(path["carrier"] == "datagram", "{percent} % loss: {path}");
        heal(lab, "loss")?;
    }
    same_session(lab, &a, &b, receiver, session)
}

fn replayed_frames_are_counted_and_never_delivered(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let to_b = b.overlay("lab")?.0;
    a.ns().reaches(&to_b, SOON)?;
    [&a, &b].iter().try_for_each(|h| plain_cable(lab, h))?;
    let capture = Capture::start(lab, lab.switch(), &Lab::port(&a), "replay")?;
    ensure!(answered(&a, &to_b, 200)? == 200, "packets are lost");
    std::thread::sleep(Duration::from_secs(1));
    let (file, _) = capture.stop()?;
    let (delivered, before) = (echoes(b.ns())?, refused(&b)?);
    let (from, to) = (underlay(&a)?.to_string(), underlay(&b)?.to_string());
    let words = |more: &'static [&'static str]| -> Vec<String> {
        let fixed = [
            file.to_string_lossy().into_owned(),
            format!("from={from}"),
            format!("to={to}"),
        ];
        fixed
            .into_iter()
            .chain(more.iter().map(|w| (*w).to_owned()))
            .collect()
    };
    let replay = |more: &'static [&'static str]| -> Result<u64> {
        let (port, words) = (Lab::port(&b), words(more));
        let all: Vec<&str> = ["replay", &port]
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect();
        Ok(tool(lab.switch(), &all)?.trim().parse()?)
    };
    // A second later, from where they came and from somewhere else.
    let sent = replay(&[])? + replay(&["as=10.99.0.77:4100"])?;
    ensure!(sent >= 400, "only {sent} frames were recorded");
    until("every repeated frame is counted", FIVE, || {
        let now = refused(&b)?;
        ensure!(
            now.1 - before.1 >= sent && now.0 == before.0,
            "{sent} sent again: {now:?} after {before:?}"
        );
        Ok(true)
    })?;
    ensure!(
        echoes(b.ns())? == delivered,
        "a repeated packet was delivered"
    );
    let path = path(&b, "a")?;
    ensure!(
        path["via"]
            .as_str()
            .is_some_and(|via| !via.starts_with("10.99.0.77")),
        "the path moved: {path}"
    );
    // After a crash of the receiver: it knows no such session.
    b.kill9()?;
    b.start()?;
    let (delivered, before) = (echoes(b.ns())?, strays(&b)?);
    let sent = replay(&[])?;
    until(
        "frames of a session before the crash are counted",
        FIVE,
        || {
            let now = strays(&b)?;
            ensure!(
                now - before >= sent,
                "{sent} sent again: {now} after {before}"
            );
            Ok(true)
        },
    )?;
    ensure!(
        echoes(b.ns())? == delivered,
        "a packet of before the crash was delivered again"
    );
    datagrams(&a, &b, FIVE)?;
    ensure!(answered(&a, &to_b, 50)? == 50, "packets are lost after it");
    Ok(())
}

/// A router, or a relay, hands frames of one session over as those of another: each is refused by the other one's key.
fn frames_swapped_between_two_sessions_are_counted_and_never_delivered(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let c = plain_host(lab, "c")?;
    c.start()?;
    let invite = text(&a.json(&["invite", "create", "lab"])?, "invite")?;
    c.json(&["join", &invite])?;
    datagrams(&b, &c, FIVE)?;
    let to_b = b.overlay("lab")?.0;
    [&a, &b, &c].iter().try_for_each(|h| plain_cable(lab, h))?;
    let (of_a, of_c) = (settled(lab, &a, &b)?, settled(lab, &c, &b)?);
    let (before, lost, delivered) = (refused(&b)?, strays(&b)?, echoes(b.ns())?);
    let swap = |from: &Host, index: u32| {
        format!(
            "ip saddr {} ip daddr {} {OURS} numgen random mod 100 < 30 @th,96,32 set {index} counter accept",
            from.under4(),
            b.under4()
        )
    };
    let rules = [swap(&a, of_c), swap(&c, of_a)];
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    ingress(lab, "swap", &[&a, &c], &rules)?;
    let answers = [&a, &c]
        .iter()
        .map(|from| answered(from, &to_b, 100))
        .collect::<Result<Vec<u32>>>()?;
    let swapped = counted(lab, "swap")?;
    heal(lab, "swap")?;
    println!("  {swapped} frames swapped, {answers:?} of 100 pings answered");
    ensure!(swapped > 30, "only {swapped} frames were swapped");
    until("every swapped frame is counted", FIVE, || {
        // A session that was replaced meanwhile takes no frame at all.
        let (now, stray) = (refused(&b)?, strays(&b)? - lost);
        ensure!(
            now.0 - before.0 + now.1 - before.1 + stray >= swapped,
            "{now:?} after {before:?} and {stray} of no session, {swapped} swapped"
        );
        Ok(true)
    })?;
    let (now, stray) = (refused(&b)?, strays(&b)? - lost);
    println!("  refused {now:?} after {before:?}, {stray} of no session");
    let answers: u32 = answers.iter().sum();
    let delivered = echoes(b.ns())? - delivered;
    ensure!(
        delivered == u64::from(answers),
        "{delivered} delivered, {answers} answered"
    );
    for from in [&a, &c] {
        ensure!(
            answered(from, &to_b, 50)? == 50,
            "packets are lost after it"
        );
    }
    Ok(())
}

fn frames_of_a_former_key_are_dead(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let to_b = b.overlay("lab")?.0;
    a.ns().reaches(&to_b, SOON)?;
    [&a, &b].iter().try_for_each(|h| plain_cable(lab, h))?;
    let capture = Capture::start(lab, lab.switch(), &Lab::port(&a), "rekey")?;
    ensure!(answered(&a, &to_b, 200)? == 200, "packets are lost");
    let (source, target) = (underlay(&a)?, underlay(&b)?);
    let (file, frames) = capture.stop()?;
    let first = newest(&frames, source, target)
        .context("a sealed datagram")?
        .receiver;
    until("the key is another one", Duration::from_secs(150), || {
        ensure!(
            answered(&a, &to_b, 100)? == 100,
            "packets are lost around the change of keys"
        );
        Ok(index(lab, &a, &b)? != first)
    })?;
    // Until the former key is wiped its frames are repeats, then frames of nobody.
    for wait in [0, 15] {
        std::thread::sleep(Duration::from_secs(wait));
        let (delivered, before, lost) = (echoes(b.ns())?, refused(&b)?, strays(&b)?);
        let words = [
            "replay",
            &Lab::port(&b),
            &file.to_string_lossy(),
            &format!("to={target}"),
            &format!("from={source}"),
        ];
        let sent: u64 = tool(lab.switch(), &words)?.trim().parse()?;
        until("every repeated frame is counted", FIVE, || {
            let (now, stray) = (refused(&b)?, strays(&b)?);
            ensure!(
                now.1 - before.1 + stray - lost >= sent,
                "{sent} sent again: {now:?}, {stray}"
            );
            Ok(true)
        })?;
        ensure!(
            echoes(b.ns())? == delivered,
            "a packet of a former key was delivered"
        );
    }
    Ok(())
}

fn a_million_forged_frames_leave_the_session_as_it_was(lab: &Lab) -> Result<()> {
    const FORGED: u64 = 1_000_000;
    let (a, b) = pair4(lab)?;
    let to_b = b.overlay("lab")?.0;
    a.ns().reaches(&to_b, SOON)?;
    let (receiver, session) = (settled(lab, &a, &b)?, Instant::now());
    let before = refused(&b)?;
    let (port, far) = (Lab::port(&b), format!("mac={}", mac(&b)?));
    let (to, from) = (
        format!("to={}", underlay(&b)?),
        format!("from={}", underlay(&a)?),
    );
    let (index, half) = (format!("index={receiver}"), format!("count={}", FORGED / 2));
    let common = ["flood", &port, &far, &to, &index, &half, "pps=40000"];
    // Half of them as from the peer's own address, half from everywhere.
    for more in [&[from.as_str()][..], &[]] {
        let words = [&common[..], more].concat();
        let mut flood = Tool::start(lab.switch(), &words, false)?;
        let mut got = 0;
        while !flood.ended()? {
            ensure!(
                session.elapsed() < Duration::from_secs(200),
                "the flood does not end"
            );
            got += answered(&a, &to_b, 20)?;
            let (there, back) = (path(&b, "a")?, path(&a, "b")?);
            ensure!(
                there["carrier"] == "datagram" && back["carrier"] == "datagram",
                "{there} {back}"
            );
        }
        println!("  {}, {got} pings answered meanwhile", flood.stop()?.trim());
        ensure!(got > 0, "no packet came through");
    }
    until("the forged frames are counted", SOON, || {
        let now = refused(&b)?;
        let seen = now.0 - before.0 + now.1 - before.1;
        // What the socket's buffer did not hold was never seen.
        ensure!(
            seen <= FORGED && seen > FORGED / 2,
            "{seen} counted: {now:?} after {before:?}"
        );
        Ok(true)
    })?;
    println!("  counted {:?} after {before:?}", refused(&b)?);
    same_session(lab, &a, &b, receiver, session)
}

fn flood_of_junk_leaves_tcp_alive(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let quiet = Transfer::start(&a, &b, 4, "0")?.wait(20)?;
    let rss = resident(&b)?;
    let (port, far, to) = (
        Lab::port(&b),
        format!("mac={}", mac(&b)?),
        format!("to={}", underlay(&b)?),
    );
    let flood = Tool::start(
        lab.switch(),
        &["flood", &port, &far, &to, "pps=100000", "count=1000000"],
        false,
    )?;
    let loud = Transfer::start(&a, &b, 6, "0")?.wait(30)?;
    let sent = flood.stop()?;
    println!(
        "  {} and {} MB/s in the flood, {}",
        quiet.bytes / 4_000_000,
        loud.bytes / 6_000_000,
        sent.trim()
    );
    ensure!(
        loud.stall() <= Duration::from_secs(1),
        "TCP stood still: {:?}",
        loud.steps
    );
    // The figures are those of scripts/bench: here a slow build shares the machine with the flood.
    ensure!(
        loud.bytes / 6 >= quiet.bytes / 4 / 20,
        "{} bytes in 6 s after {} in 4 s",
        loud.bytes,
        quiet.bytes
    );
    let grown = resident(&b)?.saturating_sub(rss);
    ensure!(grown < 30_000, "the flood cost {grown} kB of memory");
    datagrams(&a, &b, FIVE)
}

fn copied_frames_from_another_address_move_no_path(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let thief = plain_host(lab, "m")?;
    let to_b = b.overlay("lab")?.0;
    a.ns().reaches(&to_b, SOON)?;
    [&a, &b].iter().try_for_each(|h| plain_cable(lab, h))?;
    let before = path(&b, "a")?;
    let capture = Capture::start(lab, thief.ns(), "eth0", "thief")?;
    let (from, to) = (
        format!("from={}", underlay(&a)?),
        format!("to={}", underlay(&b)?),
    );
    let alias = format!("as={}", underlay(&thief)?);
    let words = [
        "thief",
        &Lab::port(&a),
        &Lab::port(&b),
        &from,
        &to,
        &alias,
        "for=6",
    ];
    let copier = Tool::start(lab.switch(), &words, true)?;
    // A third of the frames arrive only as the copy, and are then the newest ones from an address that is not the peer's.
    ingress(
        lab,
        "steal",
        &[&a],
        &[&format!("{OURS} numgen random mod 3 == 0 counter drop")],
    )?;
    let mut got = 0;
    for _ in 0..5 {
        got += answered(&a, &to_b, 40)?;
        let now = path(&b, "a")?;
        ensure!(
            now["carrier"] == "datagram" && now["via"] == before["via"],
            "{now} instead of {before}"
        );
    }
    let stolen = counted(lab, "steal")?;
    heal(lab, "steal")?;
    let copied = copier.stop();
    ensure!(
        stolen > 20 && got > 100,
        "{stolen} frames went only as the copy, {got} pings were answered"
    );
    let (_, frames) = capture.stop()?;
    let target = underlay(&thief)?;
    let toward = |f: &Vec<u8>| {
        let udp = frame::udp(f).filter(|u| u.to == target && u.from.port() == PORT)?;
        Some(udp.payload.len() as u64)
    };
    let sent: u64 = frames.iter().filter_map(toward).sum();
    println!(
        "  {stolen} only as a copy, {} copied, {sent} bytes sent to the thief",
        copied?.trim()
    );
    // A path challenge now and then, never the traffic: each copy was some hundred bytes.
    ensure!(
        sent <= 3 * 120 * stolen,
        "{sent} bytes were sent to an address that never answered"
    );
    ensure!(answered(&a, &to_b, 50)? == 50, "packets are lost after it");
    Ok(())
}
