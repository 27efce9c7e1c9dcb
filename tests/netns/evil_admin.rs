//! An admin that turns on the subnet: grants, revocations, and what is left of its word once it is out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::drive::{
    admit, belief, evil, key, member, peer, places, resident, state_bytes, stays, subnet,
    with_admin,
};
use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, NOW, SOON, until};

pub const CASES: &[Case] = &[
    fast!(one_grant_of_an_admin_takes_nobodys_addresses),
    fast!(made_up_revocations_leave_the_owner_its_word),
    fast!(two_removed_admins_stay_out_while_the_owner_is_away),
    fast!(an_admin_shuts_nobody_out_for_ever),
    fast!(a_former_admins_key_adds_nothing),
];

/// The overlay address and the ping of each to each.
fn whole(hosts: &[&Host]) -> Result<bool> {
    for from in hosts {
        for to in hosts.iter().filter(|h| h.name() != from.name()) {
            let address = to.overlay("lab")?.0;
            from.ns()
                .reaches(&address, NOW)
                .with_context(|| format!("{} to {}", from.name(), to.name()))?;
        }
    }
    Ok(true)
}

fn one_grant_of_an_admin_takes_nobodys_addresses(lab: &Lab) -> Result<()> {
    let hosts = with_admin(lab, &["c"])?;
    let (a, b, c) = (&hosts[0], &hosts[1], &hosts[2]);
    let outside = lab.host("out")?;
    let web = lab.workload("web")?;
    let attached = a.attach(&web, "lab", "web")?;
    let _server = web.serve("tcp", &crate::lab::v4(&attached)?, 80)?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    let served = || outside.ns().tcp(a.under4(), 8080, 100).map(|_| true);
    until("the map answers", SOON, served)?;
    until("everybody reaches everybody", SOON, || whole(&[a, c]))?;
    let (id, to, before) = (subnet(a)?, places(&[a, c]), belief(c)?);
    b.terminate()?;
    for shape in ["pool", "crown", "block", "ever"] {
        evil(
            b.ns(),
            &[
                "grants",
                shape,
                "--to",
                &to,
                "--subnet",
                &id,
                "--key",
                &key(b),
            ],
        )?;
        stays(
            &format!("what the others hold after {shape}"),
            Duration::from_secs(3),
            || {
                whole(&[a, c])?;
                served()
            },
        )?;
    }
    let others = |all: &[String]| -> Vec<String> {
        all.iter()
            .filter(|m| !m.contains("\"b\""))
            .cloned()
            .collect()
    };
    ensure!(
        others(&belief(c)?) == others(&before),
        "what c believes changed: {:?} {before:?}",
        belief(c)?
    );
    a.ok(&["member", "remove", "lab", "b"])?;
    until("c knows that the admin is out", SOON, || {
        Ok(c.members("lab")? == ["a", "c"])
    })?;
    whole(&[a, c]).map(drop)
}

fn made_up_revocations_leave_the_owner_its_word(lab: &Lab) -> Result<()> {
    let hosts = with_admin(lab, &["c"])?;
    let (a, b, c) = (&hosts[0], &hosts[1], &hosts[2]);
    let (d, e) = (lab.node("d")?, lab.node("e")?);
    b.terminate()?;
    let (id, to) = (subnet(a)?, places(&[a, c]));
    // What is about nobody is paid for by the connection that carries it, so that more of it only takes longer.
    let few = ["--batches", "2", "--revocations", "200"];
    evil(
        b.ns(),
        &[
            &["heads", "--to", &to, "--subnet", &id, "--key", &key(b)],
            &few[..],
        ]
        .concat(),
    )?;
    admit(a, &d, "member")?;
    a.ok(&["member", "remove", "lab", "c"])?;
    until("c knows that it is out", SOON, || {
        Ok(!c.members("lab").is_ok_and(|m| m.contains(&"c".to_owned())))
    })?;
    a.kill9()?;
    a.start()?;
    a.ok(&["member", "role", "lab", "b", "member"])?;
    a.ok(&["member", "remove", "lab", "b"])?;
    admit(a, &e, "member")?;
    until("the last joiner sees who is left", SOON, || {
        Ok(e.members("lab")? == ["a", "d", "e"])
    })?;
    // None of it kept the owner from what it does by itself, either.
    let log = a.log_tail(usize::MAX);
    let failed: Vec<&str> = log.lines().filter(|line| line.contains("upkeep")).collect();
    ensure!(failed.is_empty(), "{failed:?}");
    a.ok(&["destroy", "lab"])?;
    until("it is over for the members", SOON, || {
        Ok(d.members("lab").is_err())
    })
    .map(drop)
}

fn two_removed_admins_stay_out_while_the_owner_is_away(lab: &Lab) -> Result<()> {
    let hosts = with_admin(lab, &["c", "d", "m"])?;
    let (a, b, c, d, m) = (&hosts[0], &hosts[1], &hosts[2], &hosts[3], &hosts[4]);
    for host in [c, d] {
        a.ok(&["member", "role", "lab", host.name(), "admin"])?;
        until("d knows the admins", SOON, || {
            Ok(member(d, host.name())?["role"] == "admin")
        })?;
    }
    until("d knows that it is one", SOON, || {
        Ok(member(d, "d")?["role"] == "admin")
    })?;
    let id = subnet(a)?;
    a.terminate()?;
    for out in ["b", "c"] {
        d.ok(&["member", "remove", "lab", out])?;
    }
    until("they are out", SOON, || {
        Ok(d.members("lab")? == ["a", "d", "m"])
    })?;
    [b, c, m].iter().try_for_each(|h| h.terminate())?;
    let aim = [
        "--to",
        &places(&[d]),
        "--subnet",
        &id,
        "--key",
        &key(b),
        "--carrier",
        &key(m),
    ];
    evil(m.ns(), &[&["mutual", &key(c)], &aim[..]].concat())?;
    let again = [&["grants", "again"], &aim[..]].concat();
    let _ = evil(m.ns(), &again);
    stays("that both are out", Duration::from_secs(5), || {
        Ok(d.members("lab")? == ["a", "d", "m"])
    })?;
    // And when the owner is back.
    a.start()?;
    until("the owner knows", SOON, || {
        Ok(a.members("lab")? == ["a", "d", "m"])
    })
    .map(drop)
}

fn an_admin_shuts_nobody_out_for_ever(lab: &Lab) -> Result<()> {
    let hosts = with_admin(lab, &["c"])?;
    let (a, b, c) = (&hosts[0], &hosts[1], &hosts[2]);
    let (id, out) = (subnet(a)?, peer(c)?);
    b.terminate()?;
    evil(
        b.ns(),
        &[
            "revoke",
            &out,
            "--to",
            &places(&[a]),
            "--subnet",
            &id,
            "--key",
            &key(b),
        ],
    )?;
    a.ok(&["member", "remove", "lab", "b"])?;
    until("the admin is out", SOON, || {
        Ok(!a.members("lab")?.contains(&"b".to_owned()))
    })?;
    if c.members("lab")
        .map_or(true, |all| !all.contains(&"c".to_owned()))
    {
        // What an admin did holds until the owner speaks: it lets c in again.
        let _ = c.byway(&["leave", "lab"])?;
        let to = format!("/ip4/{}/tcp/4100", a.under4());
        let asking = c.spawn(&["join", &id, "--peer", &to, "--timeout", "20s"])?;
        until("c asks", SOON, || {
            Ok(a.byway(&["member", "approve", "lab", "c"])?.code == 0)
        })?;
        ensure!(
            asking.wait()?.code == 0,
            "the owner could not let c in again"
        );
    }
    c.ns().reaches(&a.overlay("lab")?.0, SOON).map(drop)
}

fn a_former_admins_key_adds_nothing(lab: &Lab) -> Result<()> {
    let hosts = with_admin(lab, &["c", "m"])?;
    let (a, b, c, m) = (&hosts[0], &hosts[1], &hosts[2], &hosts[3]);
    // It had a say, and used it: what it granted is still held.
    let d = lab.node("d")?;
    admit(b, &d, "member")?;
    until("the owner knows whom the admin let in", SOON, || {
        Ok(a.members("lab")?.len() == 5)
    })?;
    a.ok(&["member", "remove", "lab", "b"])?;
    for host in [a, c, m] {
        until("the admin is out", SOON, || {
            Ok(host.members("lab")? == ["a", "c", "d", "m"])
        })?;
    }
    let id = subnet(a)?;
    [b, m].iter().try_for_each(|h| h.terminate())?;
    let before = belief(c)?;
    let sizes =
        [a, c].map(|host| Ok::<_, anyhow::Error>((host, state_bytes(host)?, resident(host)?)));
    let to = places(&[a, c]);
    let aim = [
        "--to",
        &to,
        "--subnet",
        &id,
        "--key",
        &key(b),
        "--carrier",
        &key(m),
    ];
    evil(
        m.ns(),
        &[&["grants", "made-up", "--count", "300"], &aim[..]].concat(),
    )?;
    // 6 MB were said; what is written of them is less than one record of each.
    for size in sizes {
        let (host, bytes, memory) = size?;
        let (grown, more) = (
            state_bytes(host)?.saturating_sub(bytes),
            resident(host)?.saturating_sub(memory),
        );
        ensure!(
            grown < 512 * 1024,
            "the state of {} grew by {grown} bytes",
            host.name()
        );
        ensure!(
            more < 64 * 1024,
            "memory of {} grew by {more} KiB",
            host.name()
        );
    }
    ensure!(
        belief(c)? == before,
        "{:?} instead of {before:?}",
        belief(c)?
    );
    Ok(())
}
