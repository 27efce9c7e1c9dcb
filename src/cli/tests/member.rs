//! `member`, `lease`, `invite`.

use std::collections::BTreeMap;

use super::*;

pub(super) fn member() -> MemberInfo {
    MemberInfo {
        peer_id: PeerId([1; 32]),
        name: name("a"),
        role: Role::Owner,
        addresses: vec![ip("10.77.1.1")],
        leases: vec!["10.77.1.0/24".parse().unwrap()],
        generation: 1,
        expires: NOW + 90 * 86_400,
        labels: BTreeMap::from([("site".into(), "berlin".into())]),
        me: true,
    }
}

pub(super) fn lease() -> LeaseInfo {
    LeaseInfo {
        prefix: "10.77.1.0/24".parse().unwrap(),
        peer_id: PeerId([1; 32]),
        member: name("a"),
    }
}

#[test]
fn members_and_leases_look_like_this() {
    let (id1, prefix) = (PeerId([1; 32]), &PeerId([1; 32]).to_string()[..16]);
    shows(
        Response::Members {
            members: vec![member()],
        },
        &format!(
            "\
MEMBER    ROLE    ADDRESSES  EXPIRES  LABELS        PEER
a (you)   owner   10.77.1.1  in 90 d  site=berlin   {prefix}
"
        ),
    );
    shows(
        Response::Requests {
            requests: vec![JoinRequestInfo {
                peer_id: id1,
                name: name("b"),
                fingerprint: "ab12".into(),
                since: NOW - 240,
            }],
        },
        &format!("NAME  FINGERPRINT  SINCE       PEER\nb     ab12         4 min ago   {prefix}\n"),
    );
    shows(
        Response::Leases {
            leases: vec![lease()],
        },
        &format!("PREFIX         MEMBER  PEER\n10.77.1.0/24   a       {prefix}\n"),
    );
}

#[test]
fn invites_look_like_this() {
    shows(
        Response::Invites {
            invites: vec![
                InviteInfo {
                    id: "k3".into(),
                    subnet: name("lab"),
                    uses: 5,
                    left: 2,
                    expires: NOW + 86_400,
                    role: Role::Member,
                    ephemeral: true,
                    revoked: false,
                },
                InviteInfo {
                    id: "k4".into(),
                    subnet: name("lab"),
                    uses: 1,
                    left: 1,
                    expires: NOW,
                    role: Role::Admin,
                    ephemeral: false,
                    revoked: true,
                },
            ],
        },
        "\
INVITE  SUBNET  ROLE                LEFT     EXPIRES
k3      lab     member, ephemeral   2 of 5   in 24 h
k4      lab     admin               1 of 1   revoked
",
    );
    shows(
        Response::Invite(InviteCreated {
            id: "k3".into(),
            invite: "byway1x".into(),
            uses: 2,
            expires: NOW + 3600,
            join_flags: String::new(),
            notes: vec![],
        }),
        "\
invite k3
  invite      byway1x  (2 uses, 1 h)
  next        byway join byway1x      on another machine
",
    );
}

#[test]
fn what_is_to_be_known_of_an_invite_is_noted_beside_it() {
    let invite = Response::Invite(InviteCreated {
        id: "k3".into(),
        invite: "byway1x".into(),
        uses: 1,
        expires: NOW + 3600,
        join_flags: String::new(),
        notes: vec!["nobody reaches it\x1b[2J; name a relay".into()],
    });
    let outcome = Outcome::of(&invite, STYLE).unwrap();
    assert_eq!(outcome.note.lines().count(), 1, "{:?}", outcome.note);
    assert!(outcome.note.starts_with("note: nobody reaches it"));
    assert!(!outcome.note.contains('\x1b') && !outcome.text.contains("nobody"));
    assert!(outcome.json.contains("\"notes\":[\"nobody reaches it"));
}

#[test]
fn an_invite_is_revoked_by_its_own_name() {
    let Verb::Invite(revoke) = parsed("byway invite revoke lab k3") else {
        panic!()
    };
    assert_eq!(
        revoke.request(),
        Request::InviteRevoke {
            subnet: Some("lab".into()),
            invite: "k3".into()
        }
    );
}
