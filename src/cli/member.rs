//! `member`.

use clap::{Args, Subcommand};

use super::print::{self, Style, Table};
use super::subnet::{SubnetArg, role_word};
use super::{confirm, value};
use crate::api::types::{Error, JoinRequestInfo, MemberInfo, Request, Role};
use crate::model::find::peer_prefixes;

#[derive(Debug, Args)]
pub(super) struct OneMember {
    /// The subnet; also as --subnet
    #[arg(value_parser = value::subnet)]
    subnet: String,
    /// Peer ID, name, or the first characters of the ID (at least 8 after 12D3KooW)
    #[arg(value_parser = value::object)]
    member: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum MemberVerb {
    /// Every member
    Ls(SubnetArg),
    /// Who asks to be admitted
    Requests(SubnetArg),
    /// Admit one who asks
    Approve(OneMember),
    /// Refuse one who asks
    Deny(OneMember),
    /// Take a membership away, everywhere
    Remove {
        #[command(flatten)]
        member: OneMember,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Change what a member may do
    Role {
        #[command(flatten)]
        member: OneMember,
        /// member or admin
        #[arg(value_parser = value::role)]
        role: Role,
    },
    /// Set labels; an empty value takes one away
    Label {
        #[command(flatten)]
        member: OneMember,
        /// Labels
        #[arg(value_parser = value::label, required = true, value_name = "K=V")]
        labels: Vec<(String, String)>,
    },
}

impl MemberVerb {
    /// Asks before a verb that ends something.
    pub(super) fn confirmed(&self) -> Result<(), Error> {
        match self {
            MemberVerb::Remove {
                member: OneMember { subnet, member },
                yes,
            } => confirm::member(member, subnet, *yes),
            _ => Ok(()),
        }
    }

    pub(super) fn request(self) -> Request {
        match self {
            MemberVerb::Ls(args) => Request::MemberLs {
                subnet: args.subnet,
            },
            MemberVerb::Requests(args) => Request::MemberRequests {
                subnet: args.subnet,
            },
            MemberVerb::Approve(OneMember { subnet, member }) => {
                Request::MemberApprove { subnet, member }
            }
            MemberVerb::Deny(OneMember { subnet, member }) => {
                Request::MemberDeny { subnet, member }
            }
            MemberVerb::Remove {
                member: OneMember { subnet, member },
                ..
            } => Request::MemberRemove { subnet, member },
            MemberVerb::Role {
                member: OneMember { subnet, member },
                role,
            } => Request::MemberRole {
                subnet,
                member,
                role,
            },
            MemberVerb::Label {
                member: OneMember { subnet, member },
                labels,
            } => Request::MemberLabel {
                subnet,
                member,
                labels: labels.into_iter().collect(),
            },
        }
    }
}

pub(super) fn list(members: &[MemberInfo], style: Style) -> String {
    let mut table = Table::new(&["MEMBER", "ROLE", "ADDRESSES", "EXPIRES", "LABELS", "PEER"]);
    let prefixes = peer_prefixes(members.iter().map(|m| m.peer_id));
    for (m, prefix) in members.iter().zip(prefixes) {
        table.row([
            if m.me {
                format!("{} (you)", m.name)
            } else {
                m.name.to_string()
            },
            role_word(m.role).to_owned(),
            print::addresses(&m.addresses),
            // The owner's own membership does not end.
            if m.expires == 0 || m.expires == u64::MAX {
                "-".to_owned()
            } else {
                print::until(style, m.expires)
            },
            print::listed(
                &m.labels
                    .iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect::<Vec<_>>(),
            ),
            prefix,
        ]);
    }
    table.render()
}

pub(super) fn requests(requests: &[JoinRequestInfo], style: Style) -> String {
    let mut table = Table::new(&["NAME", "FINGERPRINT", "SINCE", "PEER"]);
    let prefixes = peer_prefixes(requests.iter().map(|r| r.peer_id));
    for (r, prefix) in requests.iter().zip(prefixes) {
        table.row([
            r.name.to_string(),
            r.fingerprint.clone(),
            print::ago(style, r.since),
            prefix,
        ]);
    }
    table.render()
}
