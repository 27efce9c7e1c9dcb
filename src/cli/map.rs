//! `map`.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::print::{self, Table};
use super::value::{self, Checked, Listen, wrong};
use crate::api::types::{MapInfo, Request};
use crate::model::error::Code;
use crate::model::host::Proto;
use crate::model::id::Name;
use crate::model::ports::PortRange;

fn proto(text: &str) -> Checked<Proto> {
    match text {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        _ => Err(wrong(
            Code::Proto,
            format!(
                "{:?} is not a protocol that is mapped: tcp, udp",
                text.escape_debug().to_string()
            ),
        )),
    }
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The subnet; also as --subnet
    #[arg(value_parser = value::subnet)]
    subnet: String,
    /// tcp or udp
    #[arg(value_parser = proto)]
    proto: Proto,
    /// Where this machine listens: ADDRESS:PORT[-PORT], or PORT[-PORT] for every address of both families
    #[arg(value_parser = value::listen)]
    listen: Listen,
    /// Where it leads: ADDRESS:PORT or NAME:PORT, with as many ports
    #[arg(value_parser = value::map_target)]
    target: (String, PortRange),
    /// Name of the map
    #[arg(long, value_parser = value::name)]
    name: Option<Name>,
    /// Clients that are let in [default: everyone]
    #[arg(long, value_parser = value::prefix, num_args = 1.., value_delimiter = ',', value_name = "CIDR")]
    allow: Vec<IpNet>,
}

#[derive(Debug, Subcommand)]
pub(super) enum MapVerb {
    /// Map a port
    Add(AddArgs),
    /// Take a map away: by name, or by protocol and address
    Rm {
        /// The subnet; also as --subnet
        #[arg(value_parser = value::subnet)]
        subnet: String,
        /// Name of the map, or its protocol
        #[arg(value_name = "NAME|PROTO")]
        what: String,
        /// Where it listens, as it was given to `map add`
        #[arg(value_parser = value::listen)]
        listen: Option<Listen>,
    },
    /// Every map with its counters
    Ls {
        /// The subnet; all where none is named
        #[arg(value_parser = value::subnet)]
        subnet: Option<String>,
    },
}

impl MapVerb {
    pub(super) fn request(self) -> Checked<Request> {
        Ok(match self {
            MapVerb::Add(a) => Request::MapAdd {
                subnet: a.subnet,
                proto: a.proto,
                listen: a.listen.0,
                ports: a.listen.1,
                target: a.target.0,
                target_ports: a.target.1,
                name: a.name,
                allow: a.allow,
                workload: None,
            },
            MapVerb::Rm {
                subnet,
                what,
                listen: Some(at),
            } => Request::MapRm {
                subnet,
                name: None,
                proto: Some(proto(&what)?),
                listen: at.0,
                ports: Some(at.1),
            },
            MapVerb::Rm {
                subnet,
                what,
                listen: None,
            } => {
                let name = Some(value::subnet(&what)?);
                Request::MapRm {
                    subnet,
                    name,
                    proto: None,
                    listen: None,
                    ports: None,
                }
            }
            MapVerb::Ls { subnet } => Request::MapLs { subnet },
        })
    }
}

pub(super) fn list(maps: &[MapInfo]) -> String {
    let mut table = Table::new(&[
        "SUBNET",
        "NAME",
        "PROTO",
        "LISTEN",
        "TARGET",
        "STATE",
        "CONNECTIONS",
        "RX/TX",
    ]);
    for m in maps {
        table.row([
            m.subnet.to_string(),
            m.name.to_string(),
            m.proto.to_string(),
            m.listen.clone(),
            m.target.clone(),
            m.state.clone(),
            m.connections.to_string(),
            format!(
                "{} / {}",
                print::bytes(m.rx_bytes),
                print::bytes(m.tx_bytes)
            ),
        ]);
    }
    let mut out = table.render();
    // A map of both families is two, and has one name.
    let mut told = BTreeSet::new();
    for m in maps {
        if let Some(note) = &m.note {
            let help = m
                .help
                .as_ref()
                .map(|help| format!("   ({})", print::clean(help)))
                .unwrap_or_default();
            let line = format!("! {}: {}{help}\n", m.name, print::clean(note));
            if told.insert((&m.subnet, line.clone())) {
                out += &line;
            }
        }
    }
    out
}
