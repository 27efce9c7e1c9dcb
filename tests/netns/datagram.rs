//! Which carrier is in use, and what changing it does to those who use the overlay.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::drive::stays;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::underlay::{
    self, FIVE, PORT, Transfer, block_udp, carried, datagrams, heal, lengthen, pair, pair4, path,
    plain_host,
};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(two_hosts_on_a_wire_have_a_datagram_path_within_five_seconds),
    fast!(frames_of_one_library_are_opened_by_the_other_and_the_choice_is_named),
    fast!(where_udp_is_blocked_the_stream_carries_until_it_opens),
    fast!(killed_peer_is_back_on_datagrams, "iperf3"),
    fast!(host_of_two_addresses_answers_from_the_one_that_was_asked),
    fast!(an_address_that_goes_away_is_replaced_in_a_second_and_a_half),
    fast!(an_address_that_is_cut_off_is_left_for_the_one_the_kernel_prefers),
    fast!(post_quantum_is_what_both_ends_make_of_it),
    ci!(
        carrier_switches_under_tcp_break_no_connection,
        "iperf3",
        "ss"
    ),
    ci!(flapping_link_settles_on_datagrams),
    ci!(forty_packets_a_second_lose_none_to_a_new_path),
    ci!(
        receive_buffer_follows_the_round_trip,
        "iperf3",
        "ss",
        "ethtool"
    ),
];

/// Pings in a row, fifty a second, and how many of them may be lost.
fn all_answer(from: &Host, to: &str, count: u32, lost: u32) -> Result<()> {
    let got = from.ns().probe(to, count, 20)?.answered()?;
    ensure!(got + lost >= count, "{got} of {count} answered");
    Ok(())
}

fn two_hosts_on_a_wire_have_a_datagram_path_within_five_seconds(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&["join", &invite])?;
    let joined = Instant::now();
    datagrams(&a, &b, FIVE)?;
    ensure!(joined.elapsed() <= FIVE, "it took {:?}", joined.elapsed());
    for (of, to) in [(&a, &b), (&b, &a)] {
        let path = path(of, to.name())?;
        ensure!(path["transport"] == "udp", "{path}");
        let via = text(&path, "via")?;
        let known = [
            format!("{}:{PORT}", to.under4()),
            format!("[{}]:{PORT}", to.under6()),
        ];
        // A link-local address of the same wire is as good.
        ensure!(
            known.contains(&via) || via.starts_with("[fe80:"),
            "{via} is no address of {}",
            to.name()
        );
        let said = of.ok(&["status"])?;
        ensure!(
            said.contains(&format!("direct udp {via}")),
            "no `direct udp {via}` in\n{said}"
        );
        let (v4, v6) = to.overlay("lab")?;
        all_answer(of, &v4, 50, 0)?;
        all_answer(of, &v6, 50, 0)?;
    }
    Ok(())
}

fn frames_of_one_library_are_opened_by_the_other_and_the_choice_is_named(lab: &Lab) -> Result<()> {
    let [a, b, c] = [lab.host("a")?, lab.host("b")?, lab.host("c")?];
    let choices = [
        (&a, "aes-256-gcm by ring"),
        (&b, "aes-256-gcm by aws-lc"),
        (&c, "chacha20-poly1305"),
    ];
    for (host, choice) in choices {
        let mut config = OpenOptions::new()
            .append(true)
            .open(host.dir().join("byway.toml"))?;
        config.write_all(format!("[data]\ncipher = \"{choice}\"\n").as_bytes())?;
        host.start()?;
    }
    a.json(&["create", "lab"])?;
    for host in [&b, &c] {
        host.json(&[
            "join",
            &text(&a.json(&["invite", "create", "lab"])?, "invite")?,
        ])?;
    }
    for (of, to, cipher) in [
        (&a, &b, "aes-256-gcm"),
        (&b, &a, "aes-256-gcm"),
        (&c, &a, "chacha20-poly1305"),
    ] {
        datagrams(of, to, FIVE)?;
        let (v4, _) = to.overlay("lab")?;
        all_answer(of, &v4, 50, 0)?;
        let shown = of.json(&["peer", "show", to.name()])?;
        ensure!(shown["sessions"][0]["cipher"] == cipher, "{shown}");
    }
    for (host, choice) in choices {
        let named = text(&host.json(&["status"])?, "sealing")?;
        ensure!(named.starts_with(choice), "{named}");
        let (cipher, library) = named.split_once(" by ").context("a library")?;
        let metric = format!("byway_sealing_info{{cipher=\"{cipher}\",library=\"{library}\"}} 1");
        ensure!(host.ok(&["metrics"])?.contains(&metric), "no {metric}");
        ensure!(host.drops("lab", "bad-frame")? == 0 && host.drops("lab", "replayed")? == 0);
    }
    Ok(())
}

fn where_udp_is_blocked_the_stream_carries_until_it_opens(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    block_udp(lab, &[&a, &b])?;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&[
        "join",
        &invite,
        "--peer",
        &format!("/ip4/{}/tcp/{PORT}", a.under4()),
    ])?;
    let inside = a.overlay("lab")?.0;
    b.ns().reaches(&inside, SOON)?;
    for (of, to) in [(&a, "b"), (&b, "a")] {
        carried(of, to, "stream", FIVE)?;
        let path = path(of, to)?;
        ensure!(path["transport"] == "tcp", "UDP is blocked: {path}");
    }
    heal(lab, "noudp")?;
    datagrams(&a, &b, FIVE)?;
    all_answer(&b, &inside, 50, 0)
}

fn killed_peer_is_back_on_datagrams(lab: &Lab) -> Result<()> {
    let (a, b) = pair(lab)?;
    let inside = b.overlay("lab")?.0;
    a.ns().reaches(&inside, SOON)?;
    b.kill9()?;
    b.start()?;
    a.ns().reaches(&inside, Duration::from_secs(3))?;
    datagrams(&a, &b, FIVE)?;
    all_answer(&a, &inside, 50, 0)
}

fn carrier_switches_under_tcp_break_no_connection(lab: &Lab) -> Result<()> {
    let (a, b) = pair(lab)?;
    let transfer = Transfer::start(&a, &b, 40, "50M")?;
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(3));
        block_udp(lab, &[&a, &b])?;
        let six = Duration::from_secs(6);
        let took = [
            carried(&a, "b", "stream", six)?,
            carried(&b, "a", "stream", six)?,
        ];
        std::thread::sleep(Duration::from_secs(3));
        heal(lab, "noudp")?;
        let opened = Instant::now();
        datagrams(&a, &b, FIVE)?;
        println!(
            "  stream after {took:?}, datagrams after {:?}",
            opened.elapsed()
        );
    }
    let flow = transfer.wait(60)?;
    println!(
        "  {} MB, longest stall {:?}",
        flow.bytes / 1_000_000,
        flow.stall()
    );
    // Three missed keep-alives, and what TCP waits until it tries again.
    ensure!(
        flow.stall() <= Duration::from_secs(9),
        "it stood still for {:?}: {:?}",
        flow.stall(),
        flow.steps
    );
    ensure!(
        flow.steps.iter().rev().take(4).all(|s| *s > 0),
        "it did not come back: {:?}",
        flow.steps
    );
    Ok(())
}

fn ticks(host: &Host) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.pid()?))?;
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let tick = |n: usize| {
        fields
            .get(n)
            .and_then(|f| f.parse::<u64>().ok())
            .unwrap_or_default()
    };
    Ok(tick(11) + tick(12))
}

/// A08, for twenty seconds.
fn flapping_link_settles_on_datagrams(lab: &Lab) -> Result<()> {
    let (a, b) = pair(lab)?;
    let before = ticks(&a)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        lab.unplug(&b)?;
        std::thread::sleep(Duration::from_millis(500));
        lab.plug(&b)?;
        std::thread::sleep(Duration::from_millis(500));
    }
    // A hundred ticks are a second of one processor.
    let spent = ticks(&a)? - before;
    ensure!(spent < 20 * 20, "{spent} ticks of work in 20 s of flapping");
    a.ns()
        .reaches(&b.overlay("lab")?.0, Duration::from_secs(3))?;
    datagrams(&a, &b, FIVE)?;
    all_answer(&a, &b.overlay("lab")?.0, 50, 0)
}

/// From the first packet on: the change from the stream to datagrams loses nothing.
fn forty_packets_a_second_lose_none_to_a_new_path(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    block_udp(lab, &[&a, &b])?;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&[
        "join",
        &invite,
        "--peer",
        &format!("/ip4/{}/tcp/{PORT}", a.under4()),
    ])?;
    let inside = a.overlay("lab")?.0;
    b.ns().reaches(&inside, SOON)?;
    let mut ping = b
        .ns()
        .command(&[
            "ping", "-n", "-q", "-c", "400", "-i", "0.025", "-W", "2", &inside,
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(2));
    heal(lab, "noudp")?;
    let switched = datagrams(&a, &b, FIVE);
    let mut said = String::new();
    if let Some(out) = ping.stdout.as_mut() {
        std::io::Read::read_to_string(out, &mut said)?;
    }
    ping.wait()?;
    switched?;
    ensure!(said.contains("400 received"), "{said}");
    ensure!(!said.contains("duplicates"), "{said}");
    until("the counters have it", FIVE, || {
        Ok(underlay::refused(&a)? == (0, 0))
    })
    .map(drop)
}

/// A NAT lets in only what comes from where its host sent to. Nothing but UDP passes here: libp2p's QUIC has to answer so, too.
fn host_of_two_addresses_answers_from_the_one_that_was_asked(lab: &Lab) -> Result<()> {
    let (a, b) = (plain_host(lab, "a")?, plain_host(lab, "b")?);
    let second = "10.99.0.201";
    a.ns()
        .ip(&["address", "add", &format!("{second}/24"), "dev", "eth0"])?;
    a.rebase()?;
    let first = format!("ip saddr {} meta l4proto udp drop", a.under4());
    underlay::ingress(lab, "nat", &[&a], &[&first])?;
    underlay::ingress(lab, "notcp", &[&a, &b], &["meta l4proto tcp drop"])?;
    a.start()?;
    b.start()?;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&[
        "join",
        &invite,
        "--peer",
        &format!("/ip4/{second}/udp/{PORT}/quic-v1"),
    ])?;
    datagrams(&a, &b, FIVE)?;
    let via = text(&path(&b, "a")?, "via")?;
    ensure!(
        via == format!("{second}:{PORT}"),
        "by {via}, which cannot answer"
    );
    all_answer(&b, &a.overlay("lab")?.0, 100, 0)?;
    all_answer(&a, &b.overlay("lab")?.0, 100, 0)
}

/// A09: as when a lease of DHCP brings another address. What was sent from the former one comes from the next at once, and
/// the peer follows when the former one has had its second to answer.
fn an_address_that_goes_away_is_replaced_in_a_second_and_a_half(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let inside = b.overlay("lab")?.0;
    all_answer(&a, &inside, 20, 0)?;
    let next = "10.99.0.202/24";
    a.ns().ip(&["address", "add", next, "dev", "eth0"])?;
    a.ns().ip(&[
        "address",
        "del",
        &format!("{}/24", a.under4()),
        "dev",
        "eth0",
    ])?;
    // The route went with the address it preferred, unless the kernel kept the second one.
    a.ns().ip(&["address", "replace", next, "dev", "eth0"])?;
    let lost = all_answer(&a, &inside, 150, 75);
    let via = path(&b, "a");
    a.ns().ip(&["address", "del", next, "dev", "eth0"])?;
    a.ns().ip(&[
        "address",
        "add",
        &format!("{}/24", a.under4()),
        "dev",
        "eth0",
    ])?;
    lost?;
    ensure!(via?["carrier"] == "datagram", "the stream carried");
    Ok(())
}

/// A09: as when a cable is plugged in beside a wireless link: what goes on being sent from the former address arrives nowhere.
fn an_address_that_is_cut_off_is_left_for_the_one_the_kernel_prefers(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let inside = b.overlay("lab")?.0;
    all_answer(&a, &inside, 20, 0)?;
    let since = path(&a, "b")?["since"].clone();
    let (first, second) = (a.under4().to_owned(), "10.99.0.203");
    let prefer = |source: &str| {
        a.ns().ip(&[
            "route",
            "replace",
            "10.99.0.0/24",
            "dev",
            "eth0",
            "proto",
            "kernel",
            "scope",
            "link",
            "src",
            source,
        ])
    };
    a.ns()
        .ip(&["address", "add", &format!("{second}/24"), "dev", "eth0"])?;
    prefer(second)?;
    underlay::ingress(
        lab,
        "gone",
        &[&a],
        &[&format!("ip saddr {first} meta l4proto udp drop")],
    )?;
    // What passes now passes from the second one. How soon is not ours to see by pings: it may be sooner than three are lost.
    let found = until("b is sent to from the second address", FIVE, || {
        ensure!(a.ns().pings(&inside), "nothing passes");
        let way = path(&b, "a")?;
        ensure!(way["via"] == format!("{second}:{PORT}"), "{way}");
        Ok(true)
    });
    let passes = all_answer(&a, &inside, 50, 0);
    let after = path(&a, "b");
    heal(lab, "gone")?;
    prefer(&first)?;
    a.ns()
        .ip(&["address", "del", &format!("{second}/24"), "dev", "eth0"])?;
    println!("  back after {:?}", found?);
    passes?;
    let after = after?;
    ensure!(
        after["carrier"] == "datagram" && after["since"] == since,
        "the path itself never was lost: {after}"
    );
    Ok(())
}

/// What comes while the receiving thread is late is kept for longer the farther away those are who send.
fn receive_buffer_follows_the_round_trip(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let c = plain_host(lab, "c")?;
    c.start()?;
    c.json(&[
        "join",
        &text(&a.json(&["invite", "create", "lab"])?, "invite")?,
    ])?;
    datagrams(&b, &c, FIVE)?;
    // The kernel says twice what was asked for.
    let buffer = || -> Result<u64> {
        let said = b.ns().ok(&["ss", "-Huanm", &format!("sport = :{PORT}")])?;
        let sizes = said
            .split(",rb")
            .skip(1)
            .filter_map(|rest| rest.split(',').next()?.parse::<u64>().ok());
        Ok(sizes.max().unwrap_or(0) >> 21)
    };
    ensure!(
        buffer()? == 1,
        "{} MiB for peers on the same wire",
        buffer()?
    );
    let _far = lengthen(lab, &a, 25_000)?;
    until(
        "the buffer is that of a far peer",
        Duration::from_secs(30),
        || Ok(buffer()? >= 4),
    )?;
    let near = Transfer::start(&c, &b, 8, "100M")?;
    until(
        "a near peer that sends is the one that counts",
        Duration::from_secs(7),
        || Ok(buffer()? == 1),
    )?;
    near.wait(30)?;
    let far = Transfer::start(&a, &b, 8, "100M")?;
    until(
        "a far peer that sends is the one that counts",
        Duration::from_secs(7),
        || Ok(buffer()? >= 4),
    )?;
    far.wait(30).map(drop)
}

/// What `status` of a host says of the session with another: whether it is post-quantum.
fn post_quantum(of: &Host, to: &str) -> Result<Option<bool>> {
    let status = of.status("lab")?;
    let peers = status["peers"].as_array().context("no `peers`")?;
    let peer = peers
        .iter()
        .find(|p| p["name"] == to)
        .context("no such peer")?;
    Ok(peer["session"]["post_quantum"].as_bool())
}

fn post_quantum_is_what_both_ends_make_of_it(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let set = |host: &Host, value: &str| -> Result<()> {
        if host.is_running() {
            host.terminate()?;
        }
        host.set_env("BYWAY_TRANSPORT_POST_QUANTUM", value);
        host.start()
    };
    set(&a, "off")?;
    set(&b, "prefer")?;
    b.json(&["join", &text(&a.json(&["create", "lab"])?, "invite")?])?;
    let (to_a, to_b) = (a.overlay("lab")?.0, b.overlay("lab")?.0);
    let agreed =
        |expected: bool| -> Result<()> {
            datagrams(&a, &b, SOON)?;
            until("both say whether it is post-quantum", SOON, || {
                Ok(post_quantum(&a, "b")? == Some(expected)
                    && post_quantum(&b, "a")? == Some(expected))
            })?;
            a.ns().reaches(&to_b, SOON).map(drop)
        };
    agreed(false).context("off and prefer")?;
    set(&a, "prefer")?;
    agreed(true).context("prefer and prefer")?;
    set(&a, "require")?;
    agreed(true).context("require and prefer")?;
    // Packets of who requires it never go over a stream, also when there is no other way.
    block_udp(lab, &[&a])?;
    a.ns().loses(&to_b, SOON)?;
    stays("nothing goes over TCP", Duration::from_secs(3), || {
        Ok(!a.ns().pings(&to_b) && !b.ns().pings(&to_a))
    })?;
    heal(lab, "noudp")?;
    agreed(true).context("require and prefer, after UDP was blocked")?;
    let streams = path_carriers(&a, "b")?["stream"].clone();
    ensure!(
        streams["tx_packets"] == 0 && streams["rx_packets"] == 0,
        "packets over a stream: {streams}"
    );
    set(&b, "off")?;
    for (host, words) in [
        (&a, "and this machine requires it"),
        (&b, "which is off here"),
    ] {
        until("both say why there is no session", SOON, || {
            let problems = host.json(&["status"])?["problems"].to_string();
            Ok(problems.contains("E-POST-QUANTUM") && problems.contains(words))
        })?;
    }
    ensure!(
        !a.ns().pings(&to_b) && !b.ns().pings(&to_a),
        "packets pass without what is required"
    );
    let checked = a.byway(&["status", "--check", "healthy"])?;
    ensure!(checked.code == 9, "{checked}");
    set(&b, "prefer")?;
    agreed(true).context("require and prefer again")?;
    ensure!(
        !a.json(&["status"])?["problems"]
            .to_string()
            .contains("E-POST-QUANTUM"),
        "it is said no more"
    );
    Ok(())
}

/// What each carrier took to a peer, and brought from it.
fn path_carriers(of: &Host, to: &str) -> Result<serde_json::Value> {
    let status = of.status("lab")?;
    let peers = status["peers"].as_array().context("no `peers`")?;
    Ok(peers
        .iter()
        .find(|p| p["name"] == to)
        .context("no such peer")?["carriers"]
        .clone())
}
