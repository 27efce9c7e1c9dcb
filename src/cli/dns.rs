//! `dns`.

use std::net::IpAddr;

use clap::{ArgGroup, Args, Subcommand};

use super::print::Table;
use super::subnet::SubnetArg;
use super::value;
use crate::api::types::{DnsInfo, Request};
use crate::model::zone::RecordData;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("data").required(true).args(["addresses", "cname", "txt", "srv"])))]
pub(super) struct AddArgs {
    /// The subnet; also as --subnet
    #[arg(value_parser = value::subnet)]
    subnet: String,
    /// Name below the subnet's domain; `*.apps` stands for every name below apps that does not exist
    #[arg(value_parser = value::record_name)]
    name: String,
    /// Addresses it stands for
    #[arg(value_parser = value::address, value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
    /// Another name it stands for
    #[arg(long, value_parser = value::dns_name, value_name = "NAME")]
    cname: Option<String>,
    /// Text
    #[arg(long, value_parser = value::txt, value_name = "TEXT", allow_hyphen_values = true)]
    txt: Option<RecordData>,
    /// Service: "PRIORITY WEIGHT PORT TARGET"
    #[arg(long, value_parser = value::srv, value_name = "P W PORT TARGET")]
    srv: Option<RecordData>,
    /// Seconds a client may keep the answer
    #[arg(long, default_value = "60", value_parser = value::ttl)]
    ttl: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum DnsVerb {
    /// Add a name
    Add(AddArgs),
    /// Remove a name, or what it has of one type
    Rm {
        /// The subnet; also as --subnet
        #[arg(value_parser = value::subnet)]
        subnet: String,
        /// Name below the subnet's domain
        #[arg(value_parser = value::record_name)]
        name: String,
        /// Record type; all where none is named
        #[arg(value_parser = value::record_type, value_name = "TYPE")]
        kind: Option<String>,
    },
    /// Take a name from the member that holds it, so that another may have it (owner and admins)
    Release {
        /// The subnet; also as --subnet
        #[arg(value_parser = value::subnet)]
        subnet: String,
        /// Name below the subnet's domain
        #[arg(value_parser = value::record_name)]
        name: String,
        /// Whose claim ends, where several claim it
        #[arg(long, value_name = "MEMBER")]
        member: Option<String>,
    },
    /// Every name of a subnet
    Ls(SubnetArg),
    /// Ask the daemon's own server
    Query {
        /// Name, or an address for its reverse name
        #[arg(value_parser = value::dns_question)]
        name: String,
        /// Record type [default: A, for an address PTR]
        #[arg(value_parser = value::record_type, value_name = "TYPE")]
        kind: Option<String>,
    },
}

impl DnsVerb {
    pub(super) fn request(self) -> Request {
        match self {
            DnsVerb::Add(args) => {
                let data = args.addresses.into_iter().map(RecordData::Address);
                let data = data
                    .chain(args.cname.map(RecordData::Cname))
                    .chain(args.txt)
                    .chain(args.srv)
                    .collect();
                Request::DnsAdd {
                    subnet: args.subnet,
                    name: args.name,
                    data,
                    ttl: args.ttl,
                }
            }
            DnsVerb::Release {
                subnet,
                name,
                member,
            } => Request::DnsRelease {
                subnet,
                name,
                member,
            },
            DnsVerb::Rm { subnet, name, kind } => Request::DnsRm { subnet, name, kind },
            DnsVerb::Ls(args) => Request::DnsLs {
                subnet: args.subnet,
            },
            DnsVerb::Query { name, kind } => {
                let usual = if name.parse::<IpAddr>().is_ok() {
                    "PTR"
                } else {
                    "A"
                };
                Request::DnsQuery {
                    kind: kind.unwrap_or_else(|| usual.to_owned()),
                    name,
                }
            }
        }
    }
}

pub(super) fn list(records: &[DnsInfo]) -> String {
    let mut table = Table::new(&["NAME", "TYPE", "VALUE", "TTL", "FROM"]);
    for r in records {
        table.row([
            r.name.clone(),
            r.r#type.clone(),
            r.value.clone(),
            r.ttl.to_string(),
            r.source.clone(),
        ]);
    }
    table.render()
}
