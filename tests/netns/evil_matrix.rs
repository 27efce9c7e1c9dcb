//! Rows of the fault matrix that need somebody who breaks the rules: E03, E04, E06, F06, G03, I03.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::drive::{
    Attack, admit, apart, belief, evil, key, many, member, peer, places, stays, subnet, together,
    with_admin,
};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until, v4, v6};
use crate::{fast, long};

pub const CASES: &[Case] = &[
    fast!(e03_a_member_that_grants_itself_anything_is_refused_everywhere),
    fast!(e04_traffic_of_an_address_claimed_by_two_never_moves),
    fast!(e06_a_removed_member_is_cut_on_both_sides_of_a_partition),
    long!(e06_a_removed_member_is_cut_at_fifty_peers_half_of_them_partitioned),
    fast!(f06_members_connect_while_handshakes_are_begun_and_never_finished),
    fast!(g03_addresses_a_member_names_are_not_dialled_against_the_policy),
    fast!(i03_a_neighbours_route_leads_to_no_workload),
];

fn e03_a_member_that_grants_itself_anything_is_refused_everywhere(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c"])?;
    let (a, b, c) = (&hosts[0], &hosts[1], &hosts[2]);
    let (id, thief) = (subnet(a)?, peer(b)?);
    b.terminate()?;
    let before = [belief(a)?, belief(c)?];
    let aim = ["--to", &places(&[a, c]), "--subnet", &id, "--key", &key(b)];
    for shape in ["crown", "pool", "block", "ever", "made-up"] {
        evil(
            b.ns(),
            &[&["grants", shape, "--count", "20"], &aim[..]].concat(),
        )?;
    }
    for more in [
        &["usurp"][..],
        &["usurp", "--ends"],
        &["heads", "--batches", "1", "--revocations", "100"],
        &["replay"],
    ] {
        evil(b.ns(), &[more, &aim[..]].concat())?;
    }
    evil(
        b.ns(),
        &[&["revoke", &peer(c)?, &peer(a)?], &aim[..]].concat(),
    )?;
    stays("what the others believe", Duration::from_secs(3), || {
        for (host, before) in [a, c].into_iter().zip(&before) {
            let now = belief(host)?;
            ensure!(
                now == *before,
                "{} believes {now:?} instead of {before:?}",
                host.name()
            );
        }
        Ok(true)
    })?;
    // Each kind is named once in the log, however often and in however many shapes it came.
    for host in [a, c] {
        let log = host.log_tail(usize::MAX);
        for kind in ["grant", "head", "revocation"] {
            let says = |l: &&str| {
                [thief.as_str(), "refused: ", &format!("kind=\"{kind}\"")]
                    .iter()
                    .all(|w| l.contains(w))
            };
            let lines: Vec<&str> = log.lines().filter(says).collect();
            ensure!(
                lines.len() == 1,
                "{} names the {kind}s {} times: {lines:?}",
                host.name(),
                lines.len()
            );
        }
    }
    a.ns().reaches(&c.overlay("lab")?.0, SOON).map(drop)
}

fn e04_traffic_of_an_address_claimed_by_two_never_moves(lab: &Lab) -> Result<()> {
    let hosts = with_admin(lab, &["c", "m"])?;
    let (a, b, c, m) = (&hosts[0], &hosts[1], &hosts[2], &hosts[3]);
    let (id, owned) = (subnet(a)?, c.overlay("lab")?.0);
    a.ns().reaches(&owned, SOON)?;
    [b, m].iter().try_for_each(|h| h.terminate())?;
    // Twenty a second.
    let pings = a.ns().probe(&owned, 300, 50)?;
    let to = places(&[a, c]);
    // As a member, and as an admin, which may sign what a member may not; the second connection is that of another key.
    for (host, shapes) in [(m, ["block", "crown"]), (b, ["block", "pool"])] {
        for shape in shapes {
            evil(
                host.ns(),
                &[
                    "grants",
                    shape,
                    "--to",
                    &to,
                    "--subnet",
                    &id,
                    "--key",
                    &key(host),
                ],
            )?;
        }
        host.start()?;
        stays("c's address", Duration::from_secs(3), || {
            ensure!(v4(&member(a, "c")?)? == owned, "{}", member(a, "c")?);
            Ok(true)
        })?;
    }
    let answered = pings.answered()?;
    ensure!(answered >= 298, "{} pings were lost", 300 - answered);
    Ok(())
}

fn e06_a_removed_member_is_cut_on_both_sides_of_a_partition(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c", "d", "m"])?;
    cut_in_a_partition(lab, &hosts)
}

fn e06_a_removed_member_is_cut_at_fifty_peers_half_of_them_partitioned(lab: &Lab) -> Result<()> {
    let owner = node_without_mdns(lab, "h0")?;
    owner.json(&["create", "lab"])?;
    let invite = text(
        &owner.json(&["invite", "create", "lab", "--uses", "50"])?,
        "invite",
    )?;
    let mut hosts = vec![owner];
    for name in (1..50).map(|n| format!("h{n}")).chain(["m".to_owned()]) {
        let host = node_without_mdns(lab, &name)?;
        // Fifty daemons share the processors of one machine: the kernel may not have followed within a join's limit.
        until("it has joined", Duration::from_secs(60), || {
            Ok(host.byway(&["join", &invite])?.code == 0)
        })?;
        hosts.push(host);
    }
    for host in &hosts {
        until("everybody knows everybody", Duration::from_secs(60), || {
            Ok(host.members("lab")?.len() == hosts.len())
        })?;
    }
    cut_in_a_partition(lab, &hosts)
}

/// A host whose daemon does not call out on the LAN: fifty that do are busy with nothing else.
fn node_without_mdns(lab: &Lab, name: &str) -> Result<Rc<Host>> {
    let host = lab.host(name)?;
    let text =
        format!("version = 1\n[node]\nname = \"{name}\"\n[transport]\nlan_discovery = false\n");
    std::fs::write(host.dir().join("byway.toml"), text).context("write the configuration")?;
    host.start()?;
    Ok(host)
}

/// The last of `hosts` is removed while it reaches one half of the others only, and comes back with what it had.
fn cut_in_a_partition(lab: &Lab, hosts: &[Rc<Host>]) -> Result<()> {
    let (m, others) = hosts.split_last().context("hosts")?;
    let (near, far) = others.split_at(others.len() / 2);
    let owner = near.first().context("an owner")?;
    let owned = others
        .iter()
        .map(|h| Ok(h.overlay("lab")?.0))
        .collect::<Result<Vec<_>>>()?;
    // With fifty of them on one machine not even the first packet is quick.
    let patience = Duration::from_secs(60);
    let reaches = || {
        owned
            .iter()
            .try_for_each(|address| m.ns().reaches(address, patience).map(drop))
    };
    reaches()?;
    // What it will come back with: a state in which it is a member, and every session's peer is known.
    let (state, kept) = (key(m), m.dir().join("kept").to_string_lossy().into_owned());
    m.terminate()?;
    crate::lab::sh("cp", &["-a", &state, &kept])?;
    m.start()?;
    reaches()?;
    // Somebody outside talks to a workload of its through the owner's map, and goes on talking.
    let (outside, inner) = (lab.host("out")?, lab.workload("inner")?);
    let inside = v4(&m.attach(&inner, "lab", "inner")?)?;
    let _server = inner.serve("udp", &inside, 7000)?;
    owner.ok(&["map", "add", "lab", "udp", "0.0.0.0:7000", "inner:7000"])?;
    until("the map answers", patience, || {
        outside.ns().udp(owner.under4(), 7000, 100).map(|_| true)
    })?;
    let talk = outside.ns().talk(owner.under4(), 7000)?;
    let sides: [Vec<&Host>; 2] = [
        near.iter().chain([m, &outside]).map(|h| &**h).collect(),
        far.iter().map(|h| &**h).collect(),
    ];
    apart(lab, &sides[0], &sides[1])?;
    // Long enough for each side to hold the other for dead.
    std::thread::sleep(Duration::from_secs(14));
    let to = places(&sides[0][..2]);
    let attack = flood(m, &to, &subnet(owner)?)?;
    ensure!(talk.answered() > 100, "nobody talks through the map");
    let start = Instant::now();
    owner.ok(&["member", "remove", "lab", "m"])?;
    for host in near {
        let left = Duration::from_secs(10).saturating_sub(start.elapsed());
        until("who is reachable knows", left, || {
            Ok(!host.members("lab")?.contains(&"m".to_owned()))
        })?;
    }
    println!(
        "  known to {} hosts after {:.1} s",
        near.len(),
        start.elapsed().as_secs_f64()
    );
    for address in &owned[..near.len()] {
        m.ns().loses(address, Duration::from_secs(1))?;
    }
    talk.answered();
    std::thread::sleep(Duration::from_secs(1));
    let late = talk.answered();
    ensure!(
        late == 0,
        "{late} answers of a removed member's workload came through the map"
    );
    drop(attack);
    m.terminate()?;
    crate::lab::sh("rm", &["-r", &state])?;
    crate::lab::sh("mv", &[&kept, &state])?;
    let healed = Instant::now();
    together(lab)?;
    for host in far {
        let left = Duration::from_secs(5).saturating_sub(healed.elapsed());
        until("the other side knows", left, || {
            Ok(!host.members("lab")?.contains(&"m".to_owned()))
        })?;
    }
    println!(
        "  {:.1} s after the switch was whole",
        healed.elapsed().as_secs_f64()
    );
    // It comes back as the member it was.
    m.start()?;
    is_taken_for_a_stranger(m, others, &owned)
}

/// A member floods these addresses with records for 20 seconds.
fn flood(m: &Host, to: &str, id: &str) -> Result<Attack> {
    let aim = ["--to", to, "--subnet", id, "--key", &key(m)];
    let flood = [
        &[
            "flood",
            "--records",
            "200",
            "--inflight",
            "8",
            "--for",
            "20",
        ],
        &aim[..],
    ]
    .concat();
    Attack::start(m.ns(), &flood)
}

/// Nothing of what it sends is taken any more.
fn is_taken_for_a_stranger(m: &Host, others: &[Rc<Host>], owned: &[String]) -> Result<()> {
    let before = others
        .iter()
        .map(|h| echoed(h))
        .collect::<Result<Vec<_>>>()?;
    for address in owned {
        ensure!(
            (0..10).all(|_| !m.ns().pings(address)),
            "{address} answers a removed member"
        );
    }
    let after = others
        .iter()
        .map(|h| echoed(h))
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        before == after,
        "packets of a removed member were delivered: {before:?} {after:?}"
    );
    Ok(())
}

/// Echo requests a host has received so far.
fn echoed(host: &Host) -> Result<u64> {
    crate::underlay::echoes(host.ns())
}

fn f06_members_connect_while_handshakes_are_begun_and_never_finished(lab: &Lab) -> Result<()> {
    let quiet = |name: &str| -> Result<Rc<Host>> {
        let host = lab.host(name)?;
        // As across the Internet: whoever is to be reached has to be dialled.
        let more = if name == "a" {
            ""
        } else {
            "listen = \"none\"\n"
        };
        let text = format!(
            "version = 1\n[node]\nname = \"{name}\"\n[transport]\nlan_discovery = false\n{more}"
        );
        std::fs::write(host.dir().join("byway.toml"), text).context("write the configuration")?;
        host.start()?;
        Ok(host)
    };
    let (a, b, c) = (quiet("a")?, quiet("b")?, quiet("c")?);
    let x = lab.host("x")?;
    a.json(&["create", "lab"])?;
    admit(&a, &b, "member")?;
    let (id, to_a) = (subnet(&a)?, a.overlay("lab")?.0);
    b.ns().reaches(&to_a, SOON)?;
    let invite = text(&a.json(&["invite", "create", "lab"])?, "invite")?;
    b.terminate()?;
    let (from, to) = (many(&x, 60)?, format!("[{}]:4100", a.under6()));
    let aim = ["--to", &to, "--subnet", &id, "--from", &from];
    let half = [
        &[
            "pending",
            "--per-source",
            "6",
            "--quic",
            "2",
            "--drip",
            "--for",
            "50",
        ],
        &aim[..],
    ]
    .concat();
    let attack = Attack::start(x.ns(), &half)?;
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..3 {
        b.start()?;
        let took = b
            .ns()
            .reaches(&to_a, Duration::from_secs(3))
            .context("a member behind NAT comes back")?;
        println!("  back after {:.1} s", took.as_secs_f64());
        b.terminate()?;
    }
    let start = Instant::now();
    c.json(&["join", &invite, "--timeout", "10s"])?;
    ensure!(
        start.elapsed() < Duration::from_secs(3),
        "a joiner was let in after {:?}",
        start.elapsed()
    );
    drop(attack);
    Ok(())
}

/// Counts what a host sends to some ports; the rules go with [`counted`].
fn watch(host: &Host) -> Result<()> {
    host.ns()
        .ok(&[
            "nft",
            "add table inet watch; add chain inet watch out { type filter hook output priority 0; }; \
             add rule inet watch out tcp dport { 6379, 25, 80, 22, 8443 } tcp flags syn counter; \
             add rule inet watch out meta l4proto { tcp, udp } th dport 53 counter; \
             add rule inet watch out ip daddr 169.254.169.254 counter; \
             add rule inet watch out ip daddr 10.66.0.0/16 tcp flags syn counter",
        ])
        .map(drop)
}

fn counted(host: &Host) -> Result<Vec<u64>> {
    let text = host.ns().ok(&["nft", "list", "table", "inet", "watch"])?;
    let parse = |line: &str| {
        line.split("packets ")
            .nth(1)?
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    Ok(text.lines().filter_map(parse).collect())
}

fn g03_addresses_a_member_names_are_not_dialled_against_the_policy(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c"])?;
    let (a, b, c) = (&hosts[0], &hosts[1], &hosts[2]);
    let id = subnet(a)?;
    let _mail = lab.host("victim")?;
    [a, c].iter().try_for_each(|h| watch(h))?;
    b.terminate()?;
    let before = [counted(a)?, counted(c)?];
    let own = format!("/ip4/{}/tcp/22", a.under4());
    let words = [
        "dials",
        "/ip4/127.0.0.1/tcp/6379",
        "/ip6/::1/tcp/6379",
        "/ip4/10.99.0.4/tcp/25",
        "/ip4/169.254.169.254/tcp/80",
        "/dns4/leak.attacker.example/tcp/443",
        "/dns/leak.attacker.example/udp/443/quic-v1",
        "/ip4/127.0.0.1/tcp/8443",
        &own,
        "--claimed",
        "10000",
        "--to",
        &places(&[a, c]),
        "--subnet",
        &id,
        "--key",
        &key(b),
    ];
    evil(b.ns(), &words)?;
    std::thread::sleep(Duration::from_secs(20));
    for (host, before) in [a, c].into_iter().zip(before) {
        let sent: Vec<u64> = counted(host)?
            .iter()
            .zip(&before)
            .map(|(now, then)| now - then)
            .collect();
        println!(
            "  {} sent {sent:?}: ports, questions, metadata, made-up peers",
            host.name()
        );
        ensure!(
            sent.get(..3)
                .is_some_and(|forbidden| forbidden.iter().all(|n| *n == 0)),
            "{}: {sent:?}",
            host.name()
        );
        // What may be dialled is tried once: at most eight addresses of a peer, a few packets for each.
        ensure!(
            sent.get(3).is_some_and(|made_up| *made_up <= 64),
            "{}: {sent:?}",
            host.name()
        );
        let shown = host.json(&["peer", "show", &peer_named(host, "b")?])?;
        let known = shown["addresses"].as_array().map_or(0, Vec::len);
        ensure!(known <= 32, "{} keeps {known} addresses", host.name());
        host.ns().ok(&["nft", "delete", "table", "inet", "watch"])?;
    }
    Ok(())
}

fn peer_named(host: &Host, name: &str) -> Result<String> {
    text(&member(host, name)?, "peer_id")
}

fn i03_a_neighbours_route_leads_to_no_workload(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    let x = lab.host("x")?;
    let made = a.json(&["create", "lab"])?;
    let (web, other) = (lab.workload("web")?, lab.workload("db")?);
    let (shown, hidden) = (
        a.attach(&web, "lab", "web")?,
        a.attach(&other, "lab", "db")?,
    );
    let mut servers = Vec::new();
    for (space, attached) in [(&web, &shown), (&other, &hidden)] {
        servers.push(space.serve("tcp", &v4(attached)?, 80)?);
        servers.push(space.serve("tcp", &v6(attached)?, 80)?);
    }
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    until("the map answers", SOON, || {
        x.ns().tcp(a.under4(), 8080, 100).map(|_| true)
    })?;
    for (field, gate) in [("cidr4", a.under4()), ("cidr6", a.under6())] {
        x.ns().ip(&[
            "route",
            "add",
            &text(&made, field)?,
            "via",
            gate,
            "dev",
            "eth0",
        ])?;
    }
    x.rebase()?;
    let mut doors = Vec::new();
    for attached in [&shown, &hidden] {
        doors.push(format!("{}:80", v4(attached)?));
        doors.push(format!("[{}]:80", v6(attached)?));
    }
    let doors: Vec<&str> = doors.iter().map(String::as_str).collect();
    let said = evil(x.ns(), &[&["knock"], &doors[..]].concat())?;
    ensure!(said.trim() == "closed=4", "{said}");
    // The way that was opened stays open.
    x.ns().tcp(a.under4(), 8080, 100).map(drop)
}
