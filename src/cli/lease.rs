//! `lease`.

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::print::Table;
use super::subnet::SubnetArg;
use super::value;
use super::{Context, Outcome, left_out};
use crate::api::types::{Error, LeaseInfo, Request};
use crate::model::find::peer_prefixes;

#[derive(Debug, Args)]
pub(super) struct OneLease {
    /// The subnet; also as --subnet
    #[arg(value_parser = value::subnet)]
    subnet: String,
    /// Prefix or address
    #[arg(value_parser = value::prefix)]
    prefix: IpNet,
    /// Whose [default: this node's]
    #[arg(long, value_parser = value::object)]
    member: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct GivenBack {
    /// The subnet
    #[arg(value_parser = value::subnet)]
    subnet: String,
    /// Prefix or address
    #[arg(value_parser = value::prefix)]
    prefix: IpNet,
    /// Only where this member holds it [default: whoever does]
    #[arg(long, value_parser = value::object)]
    member: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum LeaseVerb {
    /// Who holds what
    Ls(SubnetArg),
    /// Give a prefix or address to a member
    Add(OneLease),
    /// Take it back
    Rm(GivenBack),
    /// Take a whole routing table: lines ADDRESS PEER-ID
    #[command(allow_missing_positional = true)]
    Import {
        /// The subnet; also as --subnet; may be left out where this machine has one
        #[arg(value_parser = value::subnet)]
        subnet: Option<String>,
        /// The file, - for standard input
        #[arg(value_name = "FILE")]
        file: String,
    },
}

pub(super) async fn run(verb: LeaseVerb, context: &Context) -> Result<Outcome, Error> {
    let request = match verb {
        LeaseVerb::Ls(args) => Request::LeaseLs {
            subnet: args.subnet,
        },
        LeaseVerb::Add(OneLease {
            subnet,
            prefix,
            member,
        }) => Request::LeaseAdd {
            subnet,
            prefix,
            member,
        },
        LeaseVerb::Rm(GivenBack {
            subnet,
            prefix,
            member,
        }) => Request::LeaseRm {
            subnet,
            prefix,
            member,
        },
        LeaseVerb::Import { subnet, file } => import(subnet, &file, context).await?,
    };
    let outcome = Outcome::of(&context.client.call(&request).await?, context.style)?;
    Ok(if request.changes() {
        outcome
    } else {
        outcome.asked_for()
    })
}

/// Largest table: ten thousand lines and then some.
const MAX_TABLE: u64 = 1 << 20;

/// The whole file as one command: all of it is taken, or nothing.
async fn import(subnet: Option<String>, file: &str, context: &Context) -> Result<Request, Error> {
    let entries = value::lease_lines(&value::text_of(file, MAX_TABLE)?).map_err(|e| Error {
        message: format!("{file}: {}", e.message),
        ..e
    })?;
    let subnet = match subnet {
        Some(subnet) => subnet,
        None => left_out::only(context, "byway lease import SUBNET FILE").await?,
    };
    Ok(Request::LeaseImport { subnet, entries })
}

pub(super) fn list(leases: &[LeaseInfo]) -> String {
    let mut table = Table::new(&["PREFIX", "MEMBER", "PEER"]);
    let peers = peer_prefixes(leases.iter().map(|l| l.peer_id));
    for (l, peer) in leases.iter().zip(peers) {
        table.row([l.prefix.to_string(), l.member.to_string(), peer]);
    }
    table.render()
}
