//! Who is in a subnet: invites, approval, removal, and what a member may send.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, NOW, SOON, text, until};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(invite_joins_two_hosts_both_ways_both_families),
    fast!(first_packet_within_three_seconds_of_join),
    fast!(bare_id_waits_for_approval_found_by_mdns),
    fast!(bare_id_with_peer_address_and_v6_underlay),
    fast!(denied_request_is_refused),
    fast!(unanswered_request_stays_pending),
    fast!(a_join_by_invite_waits_for_its_issuer_under_one_name_and_needs_no_approval),
    fast!(a_request_that_is_taken_back_goes_at_the_owner_and_its_approval_ends),
    fast!(five_hosts_all_pairs),
    fast!(used_invite_is_refused),
    fast!(expired_invite_is_refused),
    fast!(revoked_invite_is_refused),
    fast!(forged_invite_is_refused),
    fast!(second_join_is_no_op),
    fast!(removed_member_is_cut_and_stays_out),
    fast!(two_admins_remove_two_members_in_a_partition),
    fast!(forged_source_from_a_member_host_is_dropped),
    fast!(two_subnets_on_one_daemon),
    ci!(ten_hosts_by_one_invite),
];

/// Pings from each host to every other, both families.
fn all_pairs(hosts: &[std::rc::Rc<Host>], limit: Duration) -> Result<()> {
    for from in hosts {
        for to in hosts.iter().filter(|h| h.name() != from.name()) {
            let (v4, v6) = to.overlay("lab")?;
            from.ns().reaches(&v4, limit)?;
            from.ns().reaches(&v6, limit)?;
        }
    }
    Ok(())
}

fn invite_joins_two_hosts_both_ways_both_families(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let made = a.json(&["create", "lab"])?;
    for field in [
        "id",
        "name",
        "cidr4",
        "cidr6",
        "addresses",
        "interface",
        "invite",
    ] {
        ensure!(
            !made[field].is_null(),
            "create --json lacks {field}: {made}"
        );
    }
    ensure!(
        text(&made, "id")?.len() == 26 && text(&made, "interface")? == "bw-lab",
        "{made}"
    );
    let joined = b.json(&["join", &text(&made, "invite")?])?;
    ensure!(
        joined["state"] == "ready" && joined["id"] == made["id"] && joined["interface"] == "bw-lab",
        "{joined}"
    );
    ensure!(
        crate::lab::addresses(&joined)?.len() == 2,
        "an address of each family: {joined}"
    );
    all_pairs(&[a, b], SOON)
}

fn first_packet_within_three_seconds_of_join(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let made = a.json(&["create", "lab"])?;
    let start = Instant::now();
    b.json(&["join", &text(&made, "invite")?])?;
    b.ns().reaches(&crate::lab::v4(&made)?, SOON)?;
    let took = start.elapsed();
    ensure!(
        took <= Duration::from_secs(3),
        "join and first packet took {took:?}"
    );
    Ok(())
}

/// Waits for the one request at `at` and answers it with `verb`.
pub fn answer_request(at: &Host, verb: &str) -> Result<()> {
    let mut who = None;
    until("the request is listed", SOON, || {
        let list = at.json(&["member", "requests", "lab"])?;
        who = list["requests"].as_array().and_then(|r| r.first()).cloned();
        Ok(who.is_some())
    })?;
    let request = who.context("no request")?;
    for field in ["peer_id", "name", "fingerprint", "since"] {
        ensure!(
            !request[field].is_null(),
            "a request lacks {field}: {request}"
        );
    }
    at.ok(&["member", verb, "lab", &text(&request, "peer_id")?])
        .map(drop)
}

fn bare_id_waits_for_approval_found_by_mdns(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let made = a.json(&["create", "lab"])?;
    let join = b.spawn(&["--json", "join", &text(&made, "id")?, "--timeout", "30s"])?;
    answer_request(&a, "approve")?;
    let joined = join.wait()?;
    ensure!(
        joined.code == 0 && joined.value()?["state"] == "ready",
        "{joined}"
    );
    all_pairs(&[a, b], SOON)
}

fn bare_id_with_peer_address_and_v6_underlay(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let made = a.json(&["create", "lab"])?;
    let peer = format!("/ip6/{}/tcp/4100", a.under6());
    let pending = b.byway(&[
        "--json",
        "join",
        &text(&made, "id")?,
        "--peer",
        &peer,
        "--no-wait",
    ])?;
    ensure!(
        pending.code == 7,
        "--no-wait is pending with exit 7: {pending}"
    );
    answer_request(&a, "approve")?;
    let joined = b.json(&[
        "join",
        &text(&made, "id")?,
        "--peer",
        &peer,
        "--timeout",
        "20s",
    ])?;
    ensure!(
        joined["state"] == "ready",
        "asking again continues the same request: {joined}"
    );
    all_pairs(&[a, b], SOON)
}

fn denied_request_is_refused(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    let peer = format!("/ip4/{}/tcp/4100", a.under4());
    let join = b.spawn(&["join", &id, "--peer", &peer, "--timeout", "30s"])?;
    answer_request(&a, "deny")?;
    join.wait()?.assert_error(7, "E-DENIED")?;
    ensure!(a.members("lab")? == ["a"], "a denied peer is no member");
    // It is shown until it is asked for again, or left, also after a restart.
    for restarts in [false, true] {
        if restarts {
            b.terminate()?;
            b.start()?;
        }
        let status = b.ok(&["status"])?;
        ensure!(
            status.contains("refused") && status.contains("was denied"),
            "{status}"
        );
        ensure!(
            !status.contains("who may decide is not reached"),
            "{status}"
        );
    }
    b.ok(&["leave", "lab"])?;
    ensure!(b.ok(&["status"])?.contains("no subnet yet"), "it is gone");
    // Nobody waits at the verb, and another member, which can decide nothing, is asked, too.
    let c = lab.node("c")?;
    c.json(&[
        "join",
        &text(&a.json(&["invite", "create", "lab"])?, "invite")?,
    ])?;
    b.byway(&["join", &id, "--peer", &peer, "--no-wait"])?
        .assert_error(7, "E-")?;
    until("the denial is shown", Duration::from_secs(15), || {
        Ok(b.ok(&["status"])?.contains("was denied"))
    })?;
    Ok(())
}

fn unanswered_request_stays_pending(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let made = a.json(&["create", "lab"])?;
    let peer = format!("/ip4/{}/tcp/4100", a.under4());
    // Long enough to be heard by the owner: within less, nobody who knows the subnet may be found yet.
    b.fails(
        7,
        "E-PENDING",
        &[
            "join",
            &text(&made, "id")?,
            "--peer",
            &peer,
            "--timeout",
            "4s",
        ],
    )?;
    ensure!(
        !b.ns().pings(&crate::lab::v4(&made)?),
        "a peer without a grant sends no packet"
    );
    Ok(())
}

fn a_join_by_invite_waits_for_its_issuer_under_one_name_and_needs_no_approval(
    lab: &Lab,
) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b, c) = (&hosts[0], &hosts[1], lab.node("c")?);
    let id = text(&a.json(&["subnet", "show", "lab"])?, "id")?;
    let invite = text(&a.json(&["invite", "create", "lab"])?, "invite")?;
    a.terminate()?;
    let peer = format!("/ip4/{}/tcp/4100", b.under4());
    for target in [&invite, &id] {
        // Dialling who is away takes a while before the others are asked.
        let answer = c.byway(&["join", target, "--peer", &peer, "--timeout", "12s"])?;
        answer.assert_error(7, "E-PENDING")?;
        ensure!(
            answer.err.contains("as soon as who issued that is back"),
            "{answer}"
        );
        ensure!(
            answer.err.contains("byway status") && !answer.err.contains("approve"),
            "{answer}"
        );
    }
    let status = c.ok(&["status"])?;
    ensure!(
        status.contains("subnet lab") && status.contains("for who issued the invite"),
        "{status}"
    );
    ensure!(!status.contains("approve"), "{status}");
    let shown = c.json(&["subnet", "show", "lab"])?;
    ensure!(
        shown["id"] == id.as_str() && shown["state"] == "pending",
        "{shown}"
    );
    ensure!(
        c.json(&["subnet", "ls"])?["subnets"][0]["name"] == "lab",
        "one name everywhere"
    );
    a.start()?;
    until(
        "who waits by invite comes in by itself",
        Duration::from_secs(20),
        || Ok(a.members("lab")? == ["a", "b", "c"]),
    )?;
    let asked = a.json(&["member", "requests", "lab"])?;
    ensure!(
        asked["requests"].as_array().is_some_and(Vec::is_empty),
        "nobody had to approve: {asked}"
    );
    // A request by the bare ID has the name that is shown, too, and is left by it.
    let d = lab.node("d")?;
    d.fails(
        7,
        "E-PENDING",
        &["join", &id, "--peer", &peer, "--timeout", "3s"],
    )?;
    ensure!(
        d.ok(&["status"])?.contains("subnet lab"),
        "as it was founded"
    );
    d.terminate()?;
    d.start()?;
    ensure!(
        d.ok(&["status"])?.contains("subnet lab"),
        "after a restart, too"
    );
    d.ok(&["leave", "lab"])?;
    ensure!(
        d.json(&["subnet", "ls"])?["subnets"]
            .as_array()
            .is_some_and(Vec::is_empty),
        "withdrawn"
    );
    Ok(())
}

fn a_request_that_is_taken_back_goes_at_the_owner_and_its_approval_ends(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    let peer = format!("/ip4/{}/tcp/4100", a.under4());
    let waiting = || -> Result<usize> {
        let asked = a.json(&["member", "requests", "lab"])?;
        Ok(asked["requests"].as_array().context("requests")?.len())
    };
    b.byway(&["join", &id, "--peer", &peer, "--no-wait"])?
        .assert_error(7, "E-PENDING")?;
    until("the owner has the request", SOON, || Ok(waiting()? == 1))?;
    b.ok(&["leave", &id])?;
    until("the owner hears that it is withdrawn", SOON, || {
        Ok(waiting()? == 0)
    })?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(waiting()? == 0, "no question comes after it");
    // Approved before the owner could hear of it: the asker gives back what it is given.
    b.byway(&["join", &id, "--peer", &peer, "--no-wait"])?
        .assert_error(7, "E-PENDING")?;
    until("the owner has the request", SOON, || Ok(waiting()? == 1))?;
    lab.unplug(&b)?;
    b.ok(&["leave", &id])?;
    answer_request(&a, "approve")?;
    ensure!(
        a.members("lab")? == ["a", "b"],
        "the owner did not know better"
    );
    lab.plug(&b)?;
    until("the approval ends", Duration::from_secs(40), || {
        Ok(a.members("lab")? == ["a"])
    })
    .with_context(|| b.log_tail(20))?;
    ensure!(
        b.json(&["subnet", "ls"])?["subnets"]
            .as_array()
            .is_some_and(Vec::is_empty),
        "b is in nothing"
    );
    Ok(())
}

fn five_hosts_all_pairs(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c", "d", "e"])?;
    all_pairs(&hosts, SOON)?;
    let everyone = ["a", "b", "c", "d", "e"];
    for host in &hosts {
        until("every member knows every member", SOON, || {
            Ok(host.members("lab")? == everyone)
        })?;
    }
    Ok(())
}

fn ten_hosts_by_one_invite(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c", "d", "e", "f", "g", "h", "j", "k"])?;
    all_pairs(&hosts, Duration::from_secs(20))
}

fn used_invite_is_refused(lab: &Lab) -> Result<()> {
    let (a, b, c) = (lab.node("a")?, lab.node("b")?, lab.node("c")?);
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&["join", &invite])?;
    c.fails(7, "E-INVITE-", &["join", &invite])?;
    until("only two are members", SOON, || {
        Ok(a.members("lab")? == ["a", "b"])
    })
    .map(drop)
}

fn expired_invite_is_refused(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    a.json(&["create", "lab"])?;
    let made = a.json(&["invite", "create", "lab", "--expires", "1s"])?;
    for field in ["id", "invite", "uses", "expires"] {
        ensure!(
            !made[field].is_null(),
            "invite create --json lacks {field}: {made}"
        );
    }
    let expires = made["expires"]
        .as_u64()
        .context("`expires` is seconds since 1970")?;
    until("the second is over", SOON, || {
        Ok(std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_secs()
            > expires)
    })?;
    b.fails(7, "E-INVITE-", &["join", &text(&made, "invite")?])
        .map(drop)
}

fn revoked_invite_is_refused(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    a.json(&["create", "lab"])?;
    let made = a.json(&["invite", "create", "lab"])?;
    a.ok(&["invite", "revoke", &text(&made, "id")?])?;
    b.fails(7, "E-INVITE-", &["join", &text(&made, "invite")?])
        .map(drop)
}

fn forged_invite_is_refused(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    // One character changed anywhere: either it does not decode any more, or its secret is not the issuer's.
    for at in [invite.len() / 3, invite.len() / 2, invite.len() - 2] {
        let old = invite
            .as_bytes()
            .get(at)
            .copied()
            .context("an invite is longer than that")?;
        let new = if old == b'2' { "3" } else { "2" };
        let forged = format!("{}{new}{}", &invite[..at], &invite[at + 1..]);
        b.fails(7, "E-INVITE-", &["join", &forged, "--timeout", "5s"])?;
    }
    ensure!(a.members("lab")? == ["a"], "a forged invite admits nobody");
    b.json(&["join", &invite]).map(drop)
}

fn second_join_is_no_op(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let before = b.overlay("lab")?;
    let id = text(&a.json(&["subnet", "show", "lab"])?, "id")?;
    let again = b.json(&["join", &id])?;
    ensure!(
        again["state"] == "ready" && b.overlay("lab")? == before,
        "{again}"
    );
    ensure!(
        a.json(&["create", "lab"])?["id"] == id,
        "the same again founds nothing"
    );
    a.fails(
        6,
        "E-SUBNET-EXISTS",
        &["create", "lab", "--cidr4", "10.99.0.0/16"],
    )
    .map(drop)
}

fn removed_member_is_cut_and_stays_out(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let c = lab.node("c")?;
    let invite = text(
        &a.json(&["invite", "create", "lab", "--uses", "5"])?,
        "invite",
    )?;
    c.json(&["join", &invite])?;
    let ((a4, _), (b4, _), (c4, _)) = (a.overlay("lab")?, b.overlay("lab")?, c.overlay("lab")?);
    c.ns().reaches(&a4, SOON)?;
    c.ns().reaches(&b4, SOON)?;
    // Its log says so a second after a member's connection was seen, not when the first packet passed.
    until("c is connected as a member", SOON, || {
        Ok(c.log_tail(100).contains(" connected, "))
    })?;
    a.ok(&["member", "remove", "lab", "c"])?;
    let start = Instant::now();
    a.ns().loses(&c4, Duration::from_secs(10))?;
    b.ns()
        .loses(&c4, Duration::from_secs(10).saturating_sub(start.elapsed()))?;
    ensure!(
        !c.ns().pings(&a4) && !c.ns().pings(&b4),
        "the removed member still gets through"
    );
    until("b forgot c", SOON, || Ok(b.members("lab")? == ["a", "b"]))?;
    let shown = c.ok(&["subnet", "ls"])?;
    ensure!(
        shown.contains("removed") && !shown.contains("bw-lab"),
        "the link is gone: {shown}"
    );
    let since = || -> Result<Vec<u64>> {
        let peers = c.status("lab")?["peers"]
            .as_array()
            .cloned()
            .context("peers")?;
        peers
            .iter()
            .map(|p| p["path"]["since"].as_u64().context("since"))
            .collect()
    };
    // Whoever was not connected as a member yet is shown as offline, without a time.
    let gone = || Ok(since()?.iter().any(|at| *at > 0));
    until(
        "those it was connected with are shown as gone since c was cut",
        SOON,
        gone,
    )?;
    // An invite that is good for others does not bring it back, nor does a restart.
    c.fails(7, "E-", &["join", &invite, "--timeout", "5s"])?;
    c.terminate()?;
    c.start()?;
    ensure!(
        since()?.iter().all(|at| *at == 0),
        "a start is no time at which anybody was seen: {:?}",
        since()?
    );
    a.ns().loses(&c4, SOON)?;
    ensure!(
        !c.ns().pings(&a4) && !c.ns().pings(&b4),
        "the removed member is back after a restart"
    );
    a.ns()
        .reaches(&b4, NOW)
        .context("the others go on")
        .map(drop)
}

fn two_admins_remove_two_members_in_a_partition(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c", "d"])?;
    let [a, b, c, d] = &hosts[..] else {
        unreachable!("four hosts were asked for")
    };
    all_pairs(&hosts, SOON)?;
    a.ok(&["member", "role", "lab", "b", "admin"])?;
    until("b knows it is an admin", SOON, || {
        Ok(b.json(&["subnet", "show", "lab"])?["role"] == "admin")
    })?;
    let ((a4, _), (b4, _), (c4, _), (d4, _)) = (
        a.overlay("lab")?,
        b.overlay("lab")?,
        c.overlay("lab")?,
        d.overlay("lab")?,
    );
    lab.unplug(b)?;
    a.ok(&["member", "remove", "lab", "c"])?;
    b.ok(&["member", "remove", "lab", "d"])?;
    a.ns().loses(&c4, SOON)?;
    lab.plug(b)?;
    a.ns().reaches(&b4, Duration::from_secs(30))?;
    for admin in [a, b] {
        until(
            "both removals hold at both admins",
            Duration::from_secs(40),
            || Ok(admin.members("lab")? == ["a", "b"]),
        )?;
        admin.ns().loses(&c4, SOON)?;
        admin.ns().loses(&d4, SOON)?;
    }
    ensure!(
        !d.ns().pings(&a4) && !d.ns().pings(&b4) && !c.ns().pings(&b4),
        "a removed member still gets through"
    );
    Ok(())
}

fn forged_source_from_a_member_host_is_dropped(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c"])?;
    let [a, b, c] = &hosts[..] else {
        unreachable!("three hosts were asked for")
    };
    let ((a4, a6), (c4, c6)) = (a.overlay("lab")?, c.overlay("lab")?);
    b.ns().reaches(&a4, SOON)?;
    b.ns().reaches(&a6, SOON)?;
    for (to, claimed) in [(&a4, &c4), (&a6, &c6), (&a4, &"203.0.113.7".to_owned())] {
        let before = b.drops("lab", "source-not-leased")?;
        let sent = b
            .ns()
            .socket(&["forge", claimed, to, "7777", "stolen", "bw-lab"])?;
        ensure!(sent.code == 0, "{sent}");
        until("the packet with another's source is counted", SOON, || {
            Ok(b.drops("lab", "source-not-leased")? > before)
        })?;
    }
    Ok(())
}

fn two_subnets_on_one_daemon(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let made = a.json(&["create", "other"])?;
    ensure!(
        made["cidr4"] != a.json(&["subnet", "show", "lab"])?["cidr4"],
        "prefixes do not overlap: {made}"
    );
    b.json(&["join", &text(&made, "invite")?])?;
    let ((lab4, _), (other4, other6)) = (a.overlay("lab")?, a.overlay("other")?);
    b.ns().reaches(&lab4, SOON)?;
    b.ns().reaches(&other4, SOON)?;
    b.ns().reaches(&other6, SOON)?;
    b.ok(&["leave", "other"])?;
    ensure!(!b.ns().pings(&other4), "the subnet that was left is gone");
    b.ns()
        .reaches(&lab4, NOW)
        .context("leaving one subnet leaves the other alone")
        .map(drop)
}
