//! Namespaces with an address of their own behind a peer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::runner::Case;
use crate::lab::{Lab, SOON, until, v4, v6};
use crate::{ci, fast, long};

pub const CASES: &[Case] = &[
    fast!(workloads_on_two_hosts_talk_by_name),
    fast!(full_size_packets_pass_both_ways),
    fast!(two_workloads_reach_one_remote_at_once),
    fast!(local_traffic_never_leaves_the_host),
    fast!(workload_cannot_use_anothers_address),
    fast!(detach_frees_name_and_leaves_nothing),
    fast!(death_of_a_namespace_frees_its_name),
    fast!(namespace_made_anew_under_its_name_is_attached_at_once),
    fast!(a_workload_that_spoils_its_link_fails_no_command_about_others),
    fast!(one_namespace_by_another_path_is_a_conflict_that_names_the_first),
    fast!(changes_inside_a_namespace_are_repaired_within_two_seconds),
    fast!(an_address_comes_back_to_its_name_after_detach_and_restart),
    fast!(fixed_address_and_its_conflict),
    ci!(iperf_both_ways, "iperf3"),
    long!(a_hundred_namespaces_are_attached_in_a_row),
];

/// The figure is for an optimised binary (`BYWAY_BIN`); the bound is for any.
fn a_hundred_namespaces_are_attached_in_a_row(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let before = crate::lab::snapshot::of(a.ns())?;
    let names: Vec<String> = (0..100).map(|n| format!("w{n}")).collect();
    let mut took = Vec::new();
    for name in &names {
        let space = lab.workload(name)?;
        let begun = Instant::now();
        a.attach(&space, "lab", name)?;
        took.push(begun.elapsed());
    }
    took.sort();
    println!("  attach: median {:?}, slowest {:?}", took[50], took[99]);
    ensure!(took[50] < Duration::from_millis(500), "{took:?}");
    for name in &names {
        a.ok(&["detach", name])?;
    }
    before.assert_same(
        &crate::lab::snapshot::of(a.ns())?,
        "the host after all are detached",
    )
}

fn workloads_on_two_hosts_talk_by_name(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let at = a.attach(&web, "lab", "web")?;
    for field in ["workload", "subnet", "addresses", "interface", "mtu"] {
        ensure!(!at[field].is_null(), "attach --json lacks {field}: {at}");
    }
    let (web4, web6) = (v4(&at)?, v6(&at)?);
    b.attach(&db, "lab", "db")?;
    let inside = web.ip(&[
        "-o",
        "addr",
        "show",
        "dev",
        &crate::lab::text(&at, "interface")?,
    ])?;
    ensure!(
        inside.contains(&web4) && inside.contains(&web6),
        "the workload owns its addresses: {inside}"
    );
    db.reaches(&web4, SOON)?;
    db.reaches(&web6, SOON)?;
    // By name, through the resolver found inside the namespace.
    db.reaches("web.lab.internal", SOON)?;
    web.reaches("db.lab.internal", SOON)?;
    db.reaches("web", SOON)
        .context("the search domain makes the short name enough")?;
    a.ns()
        .reaches(&v4(&b.json(&["workload", "show", "db"])?)?, SOON)
        .context("a host reaches a remote workload")?;
    // The server sees the workload's own address, not a translated one.
    let (_s4, _s6) = (
        web.serve("tcp", "0.0.0.0", 80)?,
        web.serve("tcp", "::", 80)?,
    );
    let db_at = b.json(&["workload", "show", "db"])?;
    ensure!(
        db.tcp("web.lab.internal", 80, 1000)? == v4(&db_at)?
            || db.tcp("web.lab.internal", 80, 1)? == v6(&db_at)?
    );
    ensure!(
        db.tcp(&web4, 80, 1000)? == v4(&db_at)?,
        "real source over IPv4"
    );
    ensure!(
        db.tcp(&web6, 80, 1000)? == v6(&db_at)?,
        "real source over IPv6"
    );
    Ok(())
}

fn full_size_packets_pass_both_ways(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let (web_at, db_at) = (a.attach(&web, "lab", "web")?, b.attach(&db, "lab", "db")?);
    for (from, to, at) in [(&db, &web, &web_at), (&web, &db, &db_at)] {
        let mtu = usize::try_from(at["mtu"].as_u64().context("mtu")?)?;
        for (address, any, headers) in [(v4(at)?, "0.0.0.0", 28), (v6(at)?, "::", 48)] {
            let (_tcp, _udp) = (to.serve("tcp", any, 7000)?, to.serve("udp", any, 7000)?);
            from.reaches(&address, SOON)?;
            from.udp(&address, 7000, mtu - headers)
                .context("a datagram that fills the MTU")?;
            from.tcp(&address, 7000, 5_000_000)?;
        }
        // 1400 bytes of payload in one piece where the MTU has room for it (IPv4), cut by the sender where not.
        let (_udp, address) = (to.serve("udp", "0.0.0.0", 7001)?, v4(at)?);
        if mtu >= 1428 {
            from.udp(&address, 7001, 1400)?;
        } else {
            from.ok(&[
                "ping", "-n", "-q", "-c", "1", "-W", "2", "-s", "1400", &address,
            ])?;
        }
    }
    Ok(())
}

fn two_workloads_reach_one_remote_at_once(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, one, two) = (
        lab.workload("web")?,
        lab.workload("one")?,
        lab.workload("two")?,
    );
    let web4 = v4(&a.attach(&web, "lab", "web")?)?;
    let (one4, two4) = (
        v4(&b.attach(&one, "lab", "one")?)?,
        v4(&b.attach(&two, "lab", "two")?)?,
    );
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    one.reaches(&web4, SOON)?;
    two.reaches(&web4, SOON)?;
    let seen = std::thread::scope(|s| {
        let other = s.spawn(|| two.tcp(&web4, 80, 4_000_000));
        (one.tcp(&web4, 80, 4_000_000), other.join())
    });
    ensure!(seen.0? == one4, "the first is seen by its own address");
    ensure!(
        seen.1.ok().context("the thread ended")?? == two4,
        "the second is seen by its own address"
    );
    Ok(())
}

fn local_traffic_never_leaves_the_host(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let b = &hosts[1];
    let (one, two) = (lab.workload("one")?, lab.workload("two")?);
    let (at, _) = (b.attach(&one, "lab", "one")?, b.attach(&two, "lab", "two")?);
    let (_s4, _s6) = (
        one.serve("tcp", "0.0.0.0", 80)?,
        one.serve("tcp", "::", 80)?,
    );
    two.reaches(&v4(&at)?, SOON)?;
    let before = b.ns().sent("eth0")?;
    two.tcp(&v4(&at)?, 80, 5_000_000)?;
    two.tcp(&v6(&at)?, 80, 5_000_000)?;
    let sent = b.ns().sent("eth0")? - before;
    ensure!(
        sent < 200_000,
        "{sent} bytes left the host while 20 MB moved inside it"
    );
    Ok(())
}

fn workload_cannot_use_anothers_address(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (sink, good, bad) = (
        lab.workload("sink")?,
        lab.workload("good")?,
        lab.workload("bad")?,
    );
    let sink_at = a.attach(&sink, "lab", "sink")?;
    let (good_at, bad_at) = (
        b.attach(&good, "lab", "good")?,
        b.attach(&bad, "lab", "bad")?,
    );
    bad.reaches(&v4(&sink_at)?, SOON)?;
    bad.reaches(&v6(&sink_at)?, SOON)?;
    let sides = [
        (v4(&sink_at)?, v4(&good_at)?, v4(&bad_at)?),
        (v6(&sink_at)?, v6(&good_at)?, v6(&bad_at)?),
    ];
    for (to, others, own) in sides {
        // The last datagram is honest and ends the wait, so that "nothing forged arrived" is no matter of time.
        let listener = std::thread::scope(|s| {
            let waiting = s.spawn(|| sink.socket(&["wait", &to, "7777", "8"]));
            let sent = (|| -> Result<()> {
                until("the sink listens", SOON, || {
                    Ok(sink.ok(&["ss", "-Hlun", "sport = 7777"])?.contains("7777"))
                })?;
                for source in [&others, &to, &own] {
                    let text = if *source == own { "end" } else { "forged" };
                    let answer = bad.socket(&["forge", source, &to, "7777", text])?;
                    ensure!(answer.code == 0, "{answer}");
                }
                Ok(())
            })();
            sent.and_then(|()| {
                waiting
                    .join()
                    .map_err(|_| anyhow::anyhow!("the listener panicked"))?
            })
        })?;
        ensure!(
            !listener.out.contains("forged"),
            "a forged source arrived: {listener}"
        );
        ensure!(
            listener.out.contains(&format!("{own} end")),
            "the honest packet did not arrive: {listener}"
        );
    }
    Ok(())
}

fn detach_frees_name_and_leaves_nothing(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (before, web) = (crate::lab::snapshot::of(a.ns())?, lab.workload("web")?);
    let inside = crate::lab::snapshot::of(&web)?;
    let b4 = b.overlay("lab")?.0;
    let first = a.attach(&web, "lab", "web")?;
    b.ns()
        .resolves(&b4, &["web.lab.internal", "A"], &v4(&first)?, SOON)?;
    let listed = a.json(&["workload", "ls"])?;
    ensure!(listed["workloads"][0]["workload"] == "web", "{listed}");
    a.ok(&["detach", "web"])?;
    inside.assert_same(&crate::lab::snapshot::of(&web)?, "the detached namespace")?;
    before.assert_same(&crate::lab::snapshot::of(a.ns())?, "the host after detach")?;
    until(
        "the name is gone at the other member",
        Duration::from_secs(5),
        || Ok(b.ns().dig(&b4, &["web.lab.internal", "A"])?.status == "NXDOMAIN"),
    )?;
    a.fails(5, "E-", &["detach", "web"])?;
    a.attach(&web, "lab", "web")
        .context("name and namespace are free again")
        .map(drop)
}

fn death_of_a_namespace_frees_its_name(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    let before = crate::lab::snapshot::of(a.ns())?;
    let at = a.attach(&web, "lab", "web")?;
    let b4 = b.overlay("lab")?.0;
    b.ns()
        .resolves(&b4, &["web.lab.internal", "A"], &v4(&at)?, SOON)?;
    // Only the name of the namespace goes first: nothing holds it then, so the namespace itself ends.
    crate::lab::sh("ip", &["netns", "del", web.name()])?;
    until(
        "the dead workload's name is withdrawn",
        Duration::from_secs(5),
        || Ok(b.ns().dig(&b4, &["web.lab.internal", "A"])?.status == "NXDOMAIN"),
    )?;
    // The others are told of it beside the clearing up in the kernel.
    until(
        "nothing of it is left in the kernel",
        Duration::from_secs(5),
        || {
            before
                .assert_same(
                    &crate::lab::snapshot::of(a.ns())?,
                    "the host after the workload's death",
                )
                .map(|()| true)
        },
    )
    .map(drop)
}

fn namespace_made_anew_under_its_name_is_attached_at_once(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    a.attach(&web, "lab", "web")?;
    for again in 0..5 {
        // As a person does: what the daemon made for it stands until the daemon sees that it is gone.
        crate::lab::sh("ip", &["netns", "del", web.name()])?;
        let web = crate::lab::netns::Netns::make(web.name())?;
        let at = a
            .attach(&web, "lab", "web")
            .with_context(|| format!("attached for the {again}. time"))?;
        ensure!(
            at["resolver"] == true,
            "the file of the one before is not another's: {at}"
        );
        // What is told late of the old one's death does not end the new one.
        web.reaches(&b.overlay("lab")?.0, SOON)?;
    }
    std::thread::sleep(Duration::from_secs(3));
    ensure!(
        a.json(&["workload", "ls"])?["workloads"][0]["workload"] == "web",
        "the last one lives"
    );
    web.reaches(&b.overlay("lab")?.0, SOON).map(drop)
}

fn a_workload_that_spoils_its_link_fails_no_command_about_others(lab: &Lab) -> Result<()> {
    let a = lab.subnet(&["a"])?.remove(0);
    let web = lab.workload("web")?;
    let link = crate::lab::text(&a.attach(&web, "lab", "web")?, "interface")?;
    // Its root may do with it what it likes, and the daemon cannot have the name back.
    web.ip(&["link", "set", &link, "down"])?;
    web.ip(&["link", "set", &link, "name", "mine"])?;
    web.ip(&["link", "add", &link, "type", "bridge"])?;
    until("status names it", SOON, || {
        Ok(!crate::surroundings::problems(&a, "E-KERNEL")?.is_empty())
    })?;
    a.ok(&["create", "other"])?;
    let db = lab.workload("db")?;
    a.attach(&db, "lab", "db")?;
    a.attach(&web, "other", "web")
        .context("the same namespace, in another subnet")?;
    for words in [
        ["map", "add", "lab", "tcp", "127.0.0.1:9000", "db:80"].as_slice(),
        &["map", "rm", "lab", "tcp", "127.0.0.1:9000"],
        &["dns", "add", "lab", "wiki", "--txt", "x"],
        &["subnet", "host", "lab", "closed"],
        &["up", "lab"],
        &["down", "other"],
        &["detach", "db", "--subnet", "lab"],
    ] {
        a.ok(words)?;
    }
    ensure!(
        !crate::surroundings::problems(&a, "E-KERNEL")?.is_empty(),
        "it was so all the time"
    );
    web.ip(&["link", "del", &link])?;
    until("it has its link back", SOON, || {
        Ok(crate::surroundings::problems(&a, "E-KERNEL")?.is_empty())
    })
    .map(drop)
}

fn one_namespace_by_another_path_is_a_conflict_that_names_the_first(lab: &Lab) -> Result<()> {
    let a = lab.subnet(&["a"])?.remove(0);
    let web = lab.workload("web")?;
    a.attach(&web, "lab", "web")?;
    let mut inside = web.command(&["sleep", "60"]).spawn()?;
    let outcome = (|| -> Result<()> {
        // By its path, and by a process in it. `ip netns exec` replaces itself by the program.
        let process = format!("/proc/{}/ns/net", inside.id());
        until("the process is inside", SOON, || {
            let inode = |path: &str| -> Result<u64> {
                Ok(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(
                    path,
                )?))
            };
            Ok(inode(&process)? == inode(&format!("/run/netns/{}", web.name()))?)
        })?;
        for path in [format!("/run/netns/{}", web.name()), process] {
            let refused = a.fails(
                6,
                "E-ATTACHED",
                &[
                    "attach", "netns", &path, "--subnet", "lab", "--name", "other",
                ],
            )?;
            ensure!(
                refused.to_string().contains("network namespace of web"),
                "it names the first: {refused}"
            );
        }
        a.ok(&["detach", "web"])?;
        a.ok(&[
            "attach",
            "netns",
            &format!("/run/netns/{}", web.name()),
            "--subnet",
            "lab",
            "--name",
            "other",
        ])
        .map(drop)
    })();
    inside.kill()?;
    inside.wait()?;
    outcome
}

fn changes_inside_a_namespace_are_repaired_within_two_seconds(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    let at = a.attach(&web, "lab", "web")?;
    let (link, b4) = (crate::lab::text(&at, "interface")?, b.overlay("lab")?.0);
    web.reaches(&b4, SOON)?;
    let state = || -> Result<[String; 4]> {
        let show = |args: &[&str]| web.ip(args);
        Ok([
            show(&["-o", "addr", "show", "dev", &link])?.replace("forever", ""),
            show(&["-4", "route"])?,
            show(&["-6", "route", "show", "dev", &link])?,
            show(&["-4", "rule"])?,
        ])
    };
    let before = state()?;
    // Twice: news are heard again after a repair.
    for _ in 0..2 {
        for change in [
            ["addr", "flush", "dev", link.as_str()].as_slice(),
            &["route", "flush", "dev", &link],
            &["-6", "route", "flush", "dev", &link],
            &["link", "set", &link, "down"],
        ] {
            // The daemon stands still until it was seen that something changed: it may repair it sooner than we look.
            let changed = a.stopped(|| {
                web.ip(change)?;
                state()
            })?;
            ensure!(changed != before, "{change:?} changes something");
            until(
                &format!("{change:?} is repaired"),
                Duration::from_secs(2),
                || Ok(web.pings(&b4)),
            )?;
            until(
                &format!("all of {change:?} is repaired"),
                Duration::from_secs(2),
                || Ok(state()? == before),
            )
            .with_context(|| format!("{:?} instead of {before:?}", state()))?;
        }
    }
    Ok(())
}

fn an_address_comes_back_to_its_name_after_detach_and_restart(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.ok(&["create", "lab"])?;
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let addresses = |at: &serde_json::Value| anyhow::Ok((v4(at)?, v6(at)?));
    let first = addresses(&a.attach(&web, "lab", "web")?)?;
    a.ok(&["detach", "web"])?;
    let other = addresses(&a.attach(&db, "lab", "db")?)?;
    ensure!(
        other.0 != first.0 && other.1 != first.1,
        "{first:?} is kept for web: {other:?}"
    );
    a.terminate()?;
    a.start()?;
    web.delete();
    let anew = lab.workload("web")?;
    let second = addresses(&a.attach(&anew, "lab", "web")?)?;
    ensure!(second == first, "it was {first:?}, and is {second:?}");
    a.ns().reaches(&first.0, SOON)?;
    a.kill9()?;
    a.start()?;
    let stands = addresses(&a.json(&["workload", "show", "web"])?)?;
    ensure!(
        stands == first,
        "what the kernel took stands after a crash: {stands:?}"
    );
    Ok(())
}

fn fixed_address_and_its_conflict(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let a = &hosts[0];
    let own: std::net::Ipv4Addr = a.overlay("lab")?.0.parse()?;
    let [x, y, z, _] = own.octets();
    let wanted = format!("{x}.{y}.{z}.200");
    let (one, two) = (lab.workload("one")?, lab.workload("two")?);
    let at = a.json(&[
        "attach",
        "netns",
        one.name(),
        "--subnet",
        "lab",
        "--name",
        "one",
        "--ip",
        &wanted,
    ])?;
    ensure!(v4(&at)? == wanted, "{at}");
    hosts[1].ns().reaches(&wanted, SOON)?;
    a.fails(
        6,
        "E-",
        &[
            "attach",
            "netns",
            two.name(),
            "--subnet",
            "lab",
            "--name",
            "two",
            "--ip",
            &wanted,
        ],
    )?;
    a.fails(
        6,
        "E-",
        &[
            "attach",
            "netns",
            two.name(),
            "--subnet",
            "lab",
            "--name",
            "one",
        ],
    )?;
    a.fails(
        5,
        "E-",
        &[
            "attach",
            "netns",
            "bwt-no-such-namespace",
            "--subnet",
            "lab",
        ],
    )?;
    ensure!(
        !two.ip(&["-o", "link"])?.contains("byway"),
        "a refused attach leaves nothing behind"
    );
    Ok(())
}

fn iperf_both_ways(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let web4 = v4(&a.attach(&web, "lab", "web")?)?;
    b.attach(&db, "lab", "db")?;
    db.reaches(&web4, SOON)?;
    let mut server = web
        .command(&["iperf3", "-s"])
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let outcome = (|| -> Result<()> {
        until("iperf3 listens", SOON, || {
            Ok(web.ok(&["ss", "-Hltn", "sport = 5201"])?.contains("5201"))
        })?;
        for direction in [
            &["-t", "3"][..],
            &["-t", "3", "-R"],
            &["-t", "3", "-P", "4"],
        ] {
            let report: serde_json::Value = serde_json::from_str(
                &db.ok(&[&["iperf3", "-J", "-c", &web4], direction].concat())?,
            )?;
            let rate = report["end"]["sum_received"]["bits_per_second"]
                .as_f64()
                .context("a rate")?;
            ensure!(rate > 100e6, "{direction:?}: {:.0} Mbit/s", rate / 1e6);
        }
        Ok(())
    })();
    server.kill()?;
    server.wait()?;
    outcome
}
