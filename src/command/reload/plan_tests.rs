//! What a reload does for each difference between two readings.

use super::*;

const FILE: &str = "/etc/byway/byway.toml";

fn id(n: u8) -> SubnetId {
    SubnetId([n; 16])
}

fn by_id(n: u8) -> Meant {
    let table = DeclaredSubnet {
        id: Some(id(n)),
        origin: format!("{FILE}:{n}"),
        ..DeclaredSubnet::default()
    };
    Meant {
        id: Some(id(n)),
        table,
    }
}

fn by_invite(known: Option<SubnetId>, file: &str) -> Meant {
    let table = DeclaredSubnet {
        invite_file: Some(file.into()),
        origin: format!("{FILE}:9"),
        ..DeclaredSubnet::default()
    };
    Meant { id: known, table }
}

fn with(mut meant: Meant, change: impl FnOnce(&mut DeclaredSubnet)) -> Meant {
    change(&mut meant.table);
    meant
}

fn standing(ids: &[u8]) -> Standing {
    Standing {
        stands: ids.iter().map(|n| id(*n)).collect(),
        ..Standing::default()
    }
}

fn compared(before: &[Meant], now: &[Meant], standing: &Standing) -> Plan {
    plan(before, now, &Unfinished::default(), standing, |_| true)
}

fn followed(plan: &Plan) -> Vec<String> {
    plan.follow
        .iter()
        .map(|one| one.table.origin.clone())
        .collect()
}

#[test]
fn a_declaration_that_stands_and_says_the_same_is_left_alone() {
    let moved = with(by_id(1), |table| table.origin = format!("{FILE}:40"));
    assert_eq!(
        compared(&[by_id(1)], &[moved], &standing(&[1])),
        Plan::default()
    );
}

#[test]
fn what_is_declared_and_neither_held_nor_waiting_is_asked_for_again() {
    assert_eq!(
        followed(&compared(&[by_id(1)], &[by_id(1)], &standing(&[]))),
        [format!("{FILE}:1")]
    );
    let refused = Standing {
        refused: [id(1)].into(),
        ..Standing::default()
    };
    assert_eq!(
        followed(&compared(&[by_id(1)], &[by_id(1)], &refused)),
        [format!("{FILE}:1")],
        "it was refused"
    );
    let unread = by_invite(None, "/i");
    assert_eq!(
        followed(&compared(
            std::slice::from_ref(&unread),
            std::slice::from_ref(&unread),
            &standing(&[])
        )),
        [format!("{FILE}:9")]
    );
}

#[test]
fn a_membership_that_could_not_follow_is_tried_again() {
    let failed = Unfinished {
        follow: vec![by_id(1).table],
        ..Unfinished::default()
    };
    let again = plan(&[by_id(1)], &[by_id(1)], &failed, &standing(&[1]), |_| true);
    assert_eq!(followed(&again), [format!("{FILE}:1")]);
    assert_eq!(again.follow[0].stands, Some(id(1)));
}

#[test]
fn a_leave_that_failed_is_tried_again_until_it_is_gone_or_declared() {
    let failed = Unfinished {
        leave: [id(1)].into(),
        ..Unfinished::default()
    };
    let next = |now: &[Meant], here: &Standing| plan(&[], now, &failed, here, |_| true).leave;
    assert_eq!(next(&[], &standing(&[1])), [id(1)].into());
    assert_eq!(next(&[], &standing(&[])), [].into());
    assert_eq!(next(&[by_id(1)], &standing(&[1])), [].into());
}

#[test]
fn what_is_declared_no_more_is_left_where_it_is_here() {
    assert_eq!(
        compared(&[by_id(1), by_id(2)], &[by_id(2)], &standing(&[1, 2])).leave,
        [id(1)].into()
    );
    assert_eq!(
        compared(&[by_id(1)], &[], &standing(&[])),
        Plan::default(),
        "it was never joined"
    );
    let refused = Standing {
        refused: [id(1)].into(),
        ..Standing::default()
    };
    assert_eq!(
        compared(&[by_id(1)], &[], &refused).leave,
        [id(1)].into(),
        "it is asked for no more"
    );
    // From the invite to the ID is no leave.
    let kept = compared(
        &[by_invite(Some(id(1)), "/i")],
        &[by_id(1)],
        &standing(&[1]),
    );
    assert_eq!(
        (kept.leave, kept.follow[0].was.is_some()),
        ([].into(), true)
    );
}

#[test]
fn what_a_person_created_or_joined_stays_when_it_is_declared_no_more() {
    let here = Standing {
        by_hand: [id(1)].into(),
        ..standing(&[1, 2])
    };
    let before = [by_id(1), by_id(2)];
    let over = plan(&before, &[], &Unfinished::default(), &here, |_| false);
    assert_eq!((over.leave, over.stays), ([id(2)].into(), [id(1)].into()));
    assert_eq!(over.missing, [(FILE.to_owned(), id(2))], "the other one's");
    assert_eq!(compared(&before, &before, &here).stays, [].into());
}

#[test]
fn nothing_is_left_while_a_declared_invite_cannot_be_read() {
    let (before, now) = ([by_id(1), by_id(2)], [by_invite(None, "/unreadable")]);
    let held = compared(&before, &now, &standing(&[1, 2]));
    assert_eq!((held.leave, held.kept), ([].into(), [id(1), id(2)].into()));
    // Once it can, the rest is left.
    let unfinished = Unfinished {
        leave: [id(1), id(2)].into(),
        ..Unfinished::default()
    };
    let read = [by_invite(Some(id(1)), "/unreadable")];
    let then = plan(&now, &read, &unfinished, &standing(&[1, 2]), |_| true);
    assert_eq!((then.leave, then.kept), ([id(2)].into(), [].into()));
}

#[test]
fn an_invite_that_was_never_read_is_named_when_it_is_declared_no_more() {
    assert_eq!(
        compared(&[by_invite(None, "/i")], &[], &standing(&[])).unknown,
        [format!("{FILE}:9")]
    );
    let changed = with(by_invite(None, "/i"), |table| {
        table.peers = vec!["/ip4/10.0.0.1/tcp/1".into()]
    });
    assert_eq!(
        compared(&[by_invite(None, "/i")], &[changed], &standing(&[])).unknown,
        [""; 0]
    );
}

#[test]
fn a_file_that_is_gone_is_named_for_each_membership_it_alone_declared() {
    let missing = |before: &[Meant], now: &[Meant], here: &[u8]| {
        plan(before, now, &Unfinished::default(), &standing(here), |_| {
            false
        })
        .missing
    };
    assert_eq!(missing(&[by_id(1)], &[], &[1]), [(FILE.to_owned(), id(1))]);
    assert_eq!(missing(&[by_id(1)], &[], &[]), [], "it is not here");
    let moved = with(by_id(1), |table| {
        table.origin = "/etc/byway/conf.d/a.toml:1".into()
    });
    assert_eq!(
        missing(&[by_id(1)], &[moved], &[1]),
        [],
        "it is declared elsewhere"
    );
    assert_eq!(
        compared(&[by_id(1)], &[], &standing(&[1])).missing,
        [],
        "the file is there"
    );
}

#[test]
fn every_change_that_a_membership_does_not_follow_is_named() {
    let full = with(by_id(1), |table| {
        table.name = Some("b".parse().unwrap());
        table.alias = Some("lab".parse().unwrap());
        table.ip = Some("10.1.1.1".parse().unwrap());
        table.peers = vec!["/ip4/10.0.0.1/tcp/1".into()];
        table.allow.prefixes = vec!["203.0.113.0/24".parse().unwrap()];
        table.allow.domains = vec!["example.org".into()];
    })
    .table;
    let bare = by_id(1).table;
    let all = ["name", "as", "ip", "peer", "allow_prefix", "allow_domain"];
    assert_eq!(
        not_taken(Some(&full), &bare, true, &[]),
        all,
        "what is declared no more stays"
    );
    assert_eq!(not_taken(Some(&full), &bare, false, &[]), all);
    assert_eq!(not_taken(Some(&full), &full, true, &[]), [""; 0]);
    let flags: Vec<String> = ["--name", "--as", "--ip", "--host"]
        .map(str::to_owned)
        .into();
    assert_eq!(
        not_taken(None, &full, true, &flags),
        ["name", "as", "ip"],
        "a host is followed"
    );
    assert_eq!(
        not_taken(Some(&bare), &full, true, &[]),
        ["allow_prefix", "allow_domain"],
        "a peer is followed"
    );
    assert_eq!(
        not_taken(Some(&bare), &full, false, &[]),
        [""; 0],
        "who waits asks by what is new"
    );
}

#[test]
fn a_host_that_is_declared_no_more_is_told_from_one_that_never_was() {
    let open = with(by_id(1), |table| {
        table.host = Some("tcp/22".parse().unwrap())
    })
    .table;
    assert!(host_removed(Some(&open), &by_id(1).table));
    assert!(
        !host_removed(Some(&open), &open)
            && !host_removed(Some(&by_id(1).table), &open)
            && !host_removed(None, &open)
    );
}
