//! `invite`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;

use super::print::{self, Style, Table};
use super::subnet::{next, role_word};
use super::value;
use crate::api::types::{InviteCreated, InviteInfo, Request, Role};

#[derive(Debug, Subcommand)]
pub(super) enum InviteVerb {
    /// Make an invite
    Create {
        /// The subnet; also as --subnet
        #[arg(value_parser = value::subnet)]
        subnet: String,
        /// How many may join by it
        #[arg(long, default_value = "1", value_parser = value::uses)]
        uses: u32,
        /// How long it holds
        #[arg(long, default_value = "24h", value_parser = value::duration, value_name = "DURATION")]
        expires: Duration,
        /// What they become: member or admin
        #[arg(long, default_value = "member", value_parser = value::role)]
        role: Role,
        /// Label they get; may be repeated
        #[arg(long, value_parser = value::label, value_name = "K=V")]
        label: Vec<(String, String)>,
        /// They are members for an hour at a time, as long as they are seen
        #[arg(long)]
        ephemeral: bool,
    },
    /// Invites made here and what is left of them
    Ls {
        /// The subnet; all where none is named
        #[arg(value_parser = value::subnet)]
        subnet: Option<String>,
    },
    /// End an invite
    #[command(allow_missing_positional = true)]
    Revoke {
        /// Its subnet; an invite is known without it, and one of another subnet is refused
        #[arg(value_parser = value::subnet)]
        subnet: Option<String>,
        /// Its whole ID, 8 digits as `invite ls` shows them, or the invite itself
        #[arg(value_parser = value::invite)]
        invite: String,
    },
}

impl InviteVerb {
    /// The subnet as it was typed, where the verb names one.
    pub(super) fn subnet(&self) -> Option<&str> {
        match self {
            InviteVerb::Create { subnet, .. } => Some(subnet),
            InviteVerb::Ls { subnet } | InviteVerb::Revoke { subnet, .. } => subnet.as_deref(),
        }
    }

    pub(super) fn request(self) -> Request {
        match self {
            InviteVerb::Create {
                subnet,
                uses,
                expires,
                role,
                label,
                ephemeral,
            } => {
                let labels: BTreeMap<String, String> = label.into_iter().collect();
                Request::InviteCreate {
                    subnet,
                    uses,
                    expires_ms: value::millis(expires),
                    role,
                    labels,
                    ephemeral,
                }
            }
            InviteVerb::Ls { subnet } => Request::InviteLs { subnet },
            InviteVerb::Revoke { subnet, invite } => Request::InviteRevoke { subnet, invite },
        }
    }
}

pub(super) fn created(i: &InviteCreated, style: Style) -> String {
    let uses = if i.uses == 1 {
        "one use".to_owned()
    } else {
        format!("{} uses", i.uses)
    };
    let left = print::until(style, i.expires);
    let left = left.trim_start_matches("in ");
    let invite = print::clean(&i.invite);
    format!(
        "invite {}\n  invite      {invite}  ({uses}, {left})\n{}",
        print::clean(&i.id),
        next(&invite, &i.join_flags)
    )
}

pub(super) fn list(invites: &[InviteInfo], style: Style) -> String {
    let mut table = Table::new(&["INVITE", "SUBNET", "ROLE", "LEFT", "EXPIRES"]);
    for i in invites {
        table.row([
            i.id.clone(),
            i.subnet.to_string(),
            format!(
                "{}{}",
                role_word(i.role),
                if i.ephemeral { ", ephemeral" } else { "" }
            ),
            format!("{} of {}", i.left, i.uses),
            if i.revoked {
                "revoked".to_owned()
            } else {
                print::until(style, i.expires)
            },
        ]);
    }
    table.render()
}
