//! `create`, `join`, `leave`, `destroy`, `up`, `down`, `subnet`.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::print::{self, Colour, Style, Table};
use super::value::{self, Checked, wrong};
use super::{dns, lease, map, member, waiting};
use crate::api::types::{
    Admission, Cidr, Created, HostInfo, Joined, Request, Role, SubnetInfo, SubnetState,
};
use crate::model::error::Code;
use crate::model::host::{HostPolicy, Proto};
use crate::model::id::Name;
use crate::model::policy::Allowed;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum AdmissionWord {
    Approve,
    Open,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// What the subnet is called: one DNS label
    #[arg(value_parser = value::name)]
    name: Name,
    /// IPv4 prefix: auto, none or CIDR
    #[arg(long, default_value = "auto", value_parser = value::cidr4, value_name = "CIDR")]
    cidr4: Cidr<Ipv4Net>,
    /// IPv6 prefix: auto, none or CIDR
    #[arg(long, default_value = "auto", value_parser = value::cidr6, value_name = "CIDR")]
    cidr6: Cidr<Ipv6Net>,
    /// Length of the IPv4 block each member gets [default: 24]
    #[arg(long, value_name = "LEN", value_parser = value::block4)]
    block4: Option<u8>,
    /// Who decides about those who ask by ID
    #[arg(long, default_value = "approve")]
    admission: AdmissionWord,
    /// Domain of the names [default: NAME.internal]
    #[arg(long, value_parser = value::domain)]
    domain: Option<String>,
    /// How long a membership holds without renewal [default: 90d]
    #[arg(long, value_parser = value::duration, value_name = "DURATION")]
    grant_life: Option<Duration>,
    /// What of this machine itself the subnet reaches: closed, open, or ports as tcp/22,udp/53 [default: closed]
    #[arg(long, value_parser = value::host_policy, value_name = "SPEC")]
    host: Option<HostPolicy>,
}

impl CreateArgs {
    pub(super) fn request(self) -> Checked<Request> {
        if self.cidr4 == Cidr::None && self.cidr6 == Cidr::None {
            return Err(wrong(
                Code::Cidr,
                "a subnet has addresses of one family at least, not none of both",
            ));
        }
        let shortest = if let Cidr::Given(net) = self.cidr4 {
            net.prefix_len()
        } else {
            1
        };
        if self.block4.is_some_and(|len| len < shortest || len > 32) {
            let message = format!("--block4: a member's block has a length from {shortest} to 32");
            return Err(wrong(Code::Cidr, message));
        }
        if self
            .grant_life
            .is_some_and(|life| life < Duration::from_secs(60))
        {
            return Err(wrong(
                Code::Duration,
                "--grant-life: a membership holds for a minute at least",
            ));
        }
        Ok(Request::Create {
            name: self.name,
            cidr4: self.cidr4,
            cidr6: self.cidr6,
            block4: self.block4,
            admission: match self.admission {
                AdmissionWord::Approve => Admission::Approve,
                AdmissionWord::Open => Admission::Open,
            },
            domain: self.domain,
            grant_life_s: self.grant_life.map(|life| life.as_secs()),
            host: self.host,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// ID of the subnet, an invite (byway1…), or - for standard input
    #[arg(value_parser = target, value_name = "ID|INVITE", required_unless_present = "token_file")]
    target: Option<String>,
    /// File that holds the invite or ID, - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    token_file: Option<String>,
    /// Where to find someone who knows the subnet: HOST, HOST:PORT, wss://HOST, or a multiaddr, also one through a relay; may be
    /// repeated
    #[arg(long, value_parser = value::multiaddr, value_name = "MULTIADDR|HOST[:PORT]")]
    peer: Vec<String>,
    /// Name of this member [default: node.name]
    #[arg(long, value_parser = value::name)]
    name: Option<Name>,
    /// What to call the subnet here
    #[arg(long = "as", value_parser = value::name, value_name = "ALIAS")]
    alias: Option<Name>,
    /// Address to ask for
    #[arg(long, value_parser = value::address, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// What of this machine itself the subnet reaches: closed, open, or ports as tcp/22,udp/53 [default: closed]
    #[arg(long, value_parser = value::host_policy, value_name = "SPEC")]
    host: Option<HostPolicy>,
    /// Prefix the subnet may have although it is not private, or wider than /12 or /32; may be repeated
    #[arg(long, value_parser = value::prefix, value_name = "CIDR")]
    allow_prefix: Vec<IpNet>,
    /// Domain the subnet may have although it is not below internal; may be repeated
    #[arg(long, value_parser = value::allowed_domain, value_name = "DOMAIN")]
    allow_domain: Vec<String>,
    /// How long to wait
    #[arg(long, default_value = "60s", value_parser = value::duration)]
    timeout: Duration,
    /// Ask and return at once
    #[arg(long)]
    no_wait: bool,
}

fn target(text: &str) -> Checked<String> {
    if text == "-" {
        Ok(text.to_owned())
    } else {
        value::join_target(text)
    }
}

impl JoinArgs {
    pub(super) fn request(self) -> Checked<Request> {
        let file = self
            .token_file
            .or_else(|| self.target.clone().filter(|t| t == "-"));
        let target = match (file, self.target) {
            (Some(file), _) => value::join_target(&value::secret(&file)?)?,
            (None, target) => target.unwrap_or_default(),
        };
        Ok(Request::Join {
            target,
            peers: self.peer,
            name: self.name,
            alias: self.alias,
            ip: self.ip,
            host: self.host,
            allow: Allowed {
                prefixes: self.allow_prefix,
                domains: self.allow_domain,
            },
            timeout_ms: value::millis(self.timeout),
            wait: !self.no_wait,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct SubnetArg {
    /// ID, name, or at least the first 8 characters of the ID
    #[arg(value_parser = value::subnet)]
    pub(super) subnet: String,
}

#[derive(Debug, Args)]
pub(super) struct EndedSubnet {
    /// ID, name, or at least the first 8 characters of the ID
    #[arg(value_parser = value::subnet)]
    pub(super) subnet: String,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct OptionalSubnet {
    /// ID, name, or at least the first 8 characters of the ID; all where none is named
    #[arg(value_parser = value::subnet)]
    pub(super) subnet: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum SubnetVerb {
    /// Every subnet
    Ls,
    /// Prefixes, members, leases, routes, names and maps of one
    Show(SubnetArg),
    /// What of this machine itself a subnet reaches beside ping and names
    Host {
        /// Name, ID or beginning of the ID
        #[arg(value_parser = value::subnet)]
        subnet: String,
        /// closed, open, or the whole list of ports: tcp/22,udp/53,tcp/8000-8010 [default: show it]
        #[arg(value_parser = value::host_policy, value_name = "SPEC")]
        host: Option<HostPolicy>,
    },
}

impl SubnetVerb {
    pub(super) fn request(self) -> Request {
        match self {
            SubnetVerb::Ls => Request::SubnetLs,
            SubnetVerb::Show(args) => Request::SubnetShow {
                subnet: args.subnet,
            },
            SubnetVerb::Host { subnet, host } => Request::SubnetHost { subnet, host },
        }
    }
}

pub(super) fn created(c: &Created) -> String {
    let Created {
        id,
        name,
        member,
        interface,
        ..
    } = c;
    let (addresses, interface) = (print::addresses(&c.addresses), print::clean(interface));
    let invite = match c.invite.as_deref().map(print::clean) {
        Some(invite) => {
            format!(
                "  invite      {invite}  (one use, 24 h)\n{}",
                next(&invite, &c.join_flags)
            )
        }
        None => format!(
            "  invite      none: it was created before; byway invite create {name} makes one\n"
        ),
    };
    format!(
        "subnet {name}  {id}\n  you         {member}  {addresses}  on {interface}\n{invite}{}",
        machine(name, &c.host)
    )
}

/// What to type on another machine, with the options that this subnet needs there.
pub(super) fn next(invite: &str, flags: &str) -> String {
    if flags.is_empty() {
        return format!("  next        byway join {invite}      on another machine\n");
    }
    let flags = print::clean(flags);
    format!(
        "  next        byway join {invite} {flags}      on another machine\n  note        prefixes or domain are not \
         private: whoever joins has to allow them with these options\n"
    )
}

/// What of this machine the subnet reaches, and how ssh is opened where it is shut.
fn machine(subnet: &Name, host: &HostPolicy) -> String {
    let (answers, list) = match host {
        HostPolicy::Open => ("ping, names and every port".to_owned(), String::new()),
        HostPolicy::Closed => ("ping and names only".to_owned(), "tcp/22".to_owned()),
        HostPolicy::Ports(_) => (format!("ping, names and {host}"), format!("tcp/22,{host}")),
    };
    let ssh = if host.permits(Proto::Tcp, 22) {
        String::new()
    } else {
        format!("      ssh: byway subnet host {subnet} {list}")
    };
    format!("  machine     answers {answers}{ssh}\n")
}

pub(super) fn host(info: &HostInfo) -> String {
    format!(
        "subnet {}\n{}",
        info.subnet,
        machine(&info.subnet, &info.host)
    )
}

pub(super) fn joined(joined: &Joined, style: Style) -> String {
    let name = joined
        .name
        .as_ref()
        .map(|n| format!("{n}  "))
        .unwrap_or_default();
    let mut out = format!(
        "subnet {name}{}  {}\n",
        joined.id,
        state(joined.state, style)
    );
    if !joined.addresses.is_empty() {
        let member = joined
            .member
            .as_ref()
            .map(|m| format!("{m}  "))
            .unwrap_or_default();
        let on = joined
            .interface
            .as_ref()
            .map(|i| format!("  on {i}"))
            .unwrap_or_default();
        out += &print::fields(&[(
            "you",
            format!("{member}{}{on}", print::addresses(&joined.addresses)),
        )]);
    }
    if let Some(terms) = &joined.terms {
        let prefixes: Vec<String> = terms
            .cidr4
            .map(|c| c.to_string())
            .into_iter()
            .chain(terms.cidr6.map(|c| c.to_string()))
            .collect();
        let name = if joined.name.is_none() {
            terms.founded_as.to_string()
        } else {
            String::new()
        };
        out += &print::fields(&[
            ("name", name),
            ("prefixes", prefixes.join("  ")),
            ("domain", terms.domain.clone()),
            ("owner", format!("fingerprint {}", terms.owner_fingerprint)),
        ]);
    }
    if let (Some(name), SubnetState::Ready) = (&joined.name, joined.state) {
        out += &machine(name, &joined.host);
    }
    if let Some(fingerprint) = &joined.fingerprint {
        out += &waiting::own(fingerprint);
    }
    out
}

/// What `join` was asked for in vain: this peer was a member already, and a second join changes nothing.
pub(super) fn ignored(joined: &Joined) -> String {
    if joined.ignored.is_empty() {
        return String::new();
    }
    let name = joined
        .name
        .as_ref()
        .map_or_else(|| joined.id.to_string(), Name::to_string);
    let flags = joined.ignored.join(", ");
    let mut out = format!(
        "note: this peer is a member of {name} already: no effect of {}\n",
        print::clean(&flags)
    );
    // A name is for as long as the membership lasts.
    if joined.ignored.iter().any(|flag| flag == "--host") {
        out += &format!("  try:  byway subnet host {name} SPEC\n");
    }
    out
}

/// A state as the word of the contract.
pub(super) fn state_word(state: SubnetState) -> &'static str {
    match state {
        SubnetState::Ready => "ready",
        SubnetState::Pending => "pending",
        SubnetState::Refused => "refused",
        SubnetState::Down => "down",
        SubnetState::Removed => "removed",
    }
}

pub(super) fn state(state: SubnetState, style: Style) -> String {
    let colour = match state {
        SubnetState::Ready => Colour::Good,
        SubnetState::Pending | SubnetState::Down => Colour::Odd,
        SubnetState::Removed | SubnetState::Refused => Colour::Bad,
    };
    style.paint(colour, state_word(state))
}

pub(super) fn role_word(role: Role) -> &'static str {
    match role {
        Role::Member => "member",
        Role::Admin => "admin",
        Role::Owner => "owner",
    }
}

pub(super) fn list(subnets: &[SubnetInfo], _style: Style) -> String {
    let mut table = Table::new(&[
        "SUBNET",
        "ID",
        "STATE",
        "ROLE",
        "MEMBERS",
        "CIDR4",
        "CIDR6",
        "INTERFACE",
    ]);
    for s in subnets {
        table.row([
            s.name.to_string(),
            s.id.to_string(),
            state_word(s.state).to_owned(),
            role_word(s.role).to_owned(),
            s.members.len().to_string(),
            s.cidr4.map_or("-".to_owned(), |c| c.to_string()),
            s.cidr6.map_or("-".to_owned(), |c| c.to_string()),
            if s.interface.is_empty() {
                "-".to_owned()
            } else {
                s.interface.clone()
            },
        ]);
    }
    table.render()
}

pub(super) fn show(s: &SubnetInfo, style: Style) -> String {
    let mut out = format!("subnet {}  {}  {}\n", s.name, s.id, state(s.state, style));
    let prefixes: Vec<String> = s
        .cidr4
        .map(|c| c.to_string())
        .into_iter()
        .chain(s.cidr6.map(|c| c.to_string()))
        .collect();
    out += &print::fields(&[
        ("prefixes", prefixes.join("  ")),
        (
            "block",
            if s.cidr4.is_some() {
                format!("/{} a member", s.block4)
            } else {
                String::new()
            },
        ),
        ("addresses", print::addresses(&s.addresses)),
        (
            "interface",
            if s.interface.is_empty() {
                String::new()
            } else {
                format!("{}  mtu {}", s.interface, s.mtu)
            },
        ),
        ("domain", s.domain.clone()),
        ("machine", s.host.to_string()),
        ("role", role_word(s.role).to_owned()),
        (
            "admission",
            if s.admission == Admission::Open {
                "open"
            } else {
                "approve"
            }
            .to_owned(),
        ),
        ("owner", s.owner.to_string()),
        ("head", s.head.to_string()),
    ]);
    let mut part = |title: &str, count: usize, body: String| {
        if count > 0 {
            out += &format!("\n{title}\n{body}");
        }
    };
    part("members", s.members.len(), member::list(&s.members, style));
    part("leases", s.leases.len(), lease::list(&s.leases));
    part("routes", s.routes.len(), lease::list(&s.routes));
    part("names", s.names.len(), dns::list(&s.names));
    part("maps", s.maps.len(), map::list(&s.maps));
    out
}
