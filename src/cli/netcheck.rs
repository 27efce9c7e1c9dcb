//! `netcheck`, `doctor`: what stands between this machine and its peers, and what to do about it.

mod remedies;

use clap::Args;

use self::remedies::Group;
use super::peer;
use super::print::{self, Colour, Style};
use super::value;
use super::{Outcome, Purpose};
use crate::api::types::{
    Diagnosis, DoctorInfo, Error, ErrorKind, ExternalInfo, ExternalSource, LanInfo, MeetingPoint,
    NatInfo, NetcheckInfo, Problem, ProxyInfo, Request, RouterInfo, RouterPort,
};
use crate::model::error::Code;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Peer ID, name, or the first characters of the ID; everything where none is named
    #[arg(value_parser = value::object)]
    peer: Option<String>,
    /// First do at once what the daemon does in its own time: dial who is not reached, ask each relay for a place and the
    /// router for ports. What only a person can mend is left to the remedies that are told
    #[arg(long)]
    fix: bool,
}

impl DoctorArgs {
    pub(super) fn request(self) -> Request {
        Request::Doctor {
            peer: self.peer,
            fix: self.fix,
        }
    }
}

/// The same answer, with exit code 9 where a finding is a warning or an error. Its remedy is in the answer.
pub(super) fn judged(outcome: Outcome, findings: &[Problem]) -> Outcome {
    let worst = findings.iter().find(|finding| finding.severity != "info");
    let error = worst
        .map(|finding| Error::new(ErrorKind::Degraded, Code::Degraded, finding.message.clone()));
    Outcome {
        error,
        purpose: Purpose::Answer,
        ..outcome
    }
}

pub(super) fn netcheck(info: &NetcheckInfo, style: Style) -> String {
    let mut out = nat(&info.nat);
    for own in &info.addresses {
        let by = match own.seen_by.as_slice() {
            [] => String::new(),
            seen => format!("  seen by {}", print::listed(seen)),
        };
        let text = format!("{} {}{by}", own.address, own.kind);
        out += &print::fields(&[("address", text)]);
    }
    for point in &info.meeting_points {
        out += &print::fields(&[("meeting", meeting(point, style))]);
    }
    if let Some(lan) = &info.lan {
        out += &print::fields(&[("lan", local(lan))]);
    }
    if let Some(info) = &info.proxy {
        out += &print::fields(&[("proxy", proxy(info, style))]);
    }
    if let Some(info) = &info.router {
        out += &routers(info);
    }
    if let Some(info) = &info.external {
        out += &external(info);
    }
    out + &findings(&info.findings, style)
}

/// How the search on the local networks goes.
fn local(lan: &LanInfo) -> String {
    let on = match lan.links.as_slice() {
        [] => "on no link".to_owned(),
        links => format!("on {}", print::listed(links)),
    };
    let dropped = match lan.dropped {
        0 => String::new(),
        dropped => format!(", {dropped} dropped"),
    };
    let (peers, asked, told) = (lan.peers, lan.asked, lan.told);
    format!("{peers} heard of {on} (asked {asked}, told {told}{dropped})")
}

/// The proxy on the way out, with what it said last.
fn proxy(info: &ProxyInfo, style: Style) -> String {
    let connected = match info.connected_at {
        Some(at) => format!("connected last {}", print::ago(style, at)),
        None => "has not connected yet".to_owned(),
    };
    let refused = match (&info.refused, info.refused_at) {
        (Some(why), Some(at)) => {
            let place = info.refused_place.as_ref();
            let place = place.map_or_else(String::new, |place| format!(" for {place}"));
            let ago = print::ago(style, at);
            format!("; refused last{place} {ago}: {}", print::clean(why))
        }
        _ => String::new(),
    };
    format!("{}  {connected}{refused}", info.address)
}

/// What peers are told of where this machine is, and what each of those said who were asked.
fn external(info: &ExternalInfo) -> String {
    let unknown = || format!("not known by {}", info.by);
    let told = info.address.as_ref();
    let told = told.map_or_else(unknown, |at| format!("{at} by {}", info.by));
    let source = |source: &ExternalSource| {
        let said = source.said.as_ref().or(source.error.as_ref());
        let said = said.map_or("", String::as_str);
        print::fields(&[("", format!("{}: {said}", source.name))])
    };
    let sources: String = info.sources.iter().map(source).collect();
    print::fields(&[("outside", told)]) + &sources
}

/// The routers, a line for each of their ports; one that says why there are none.
fn routers(info: &RouterInfo) -> String {
    let others: String = info.others.iter().map(router).collect();
    router(info) + &others
}

/// One router.
fn router(info: &RouterInfo) -> String {
    let name = info.gateway.map_or("none".to_owned(), |at| at.to_string());
    let port = |port: &RouterPort| {
        let lease = port.lease_s.map_or("for ever".to_owned(), |left| {
            format!("for {} min", left.div_ceil(60))
        });
        let (proto, protocol, external) = (&port.proto, &port.protocol, &port.external);
        let text = format!(
            "{name}  {external} leads to {proto} {} by {protocol}, {lease}",
            port.port
        );
        print::fields(&[("router", text)])
    };
    let ports: String = info.ports.iter().map(port).collect();
    let is_open = |wanted: &&String| {
        let mut open = info.ports.iter();
        open.any(|port| format!("{}/{}", port.proto, port.port) == **wanted)
    };
    let wanted: Vec<&String> = info.wanted.iter().filter(|port| !is_open(port)).collect();
    let wanted = match wanted.as_slice() {
        [] => String::new(),
        wanted => format!(" for {}", print::listed(wanted)),
    };
    let again = info.again_s.map(|left| {
        let left = print::span(left);
        print::fields(&[(
            "",
            format!("{name} is asked again{wanted} in {left}, or at once by byway doctor --fix"),
        )])
    });
    let again = again.unwrap_or_default();
    match &info.text {
        Some(why) if ports.is_empty() => {
            // Its address stands before it.
            let why = why.strip_prefix("the router ").unwrap_or(why);
            print::fields(&[("router", format!("{name}  {}", print::clean(why)))]) + &again
        }
        _ if ports.is_empty() => {
            print::fields(&[("router", format!("{name}  is being asked{wanted}"))])
        }
        _ => ports + &again,
    }
}

fn meeting(point: &MeetingPoint, style: Style) -> String {
    let name = point.name.clone().unwrap_or_else(|| point.peer_id.short());
    // Microseconds of a round trip are few: exact in a double.
    let rtt = point
        .rtt_us
        .map(|us| format!("  {}", print::millis(us as f64 / 1000.0)))
        .unwrap_or_default();
    // A person who reads this makes an invite next.
    let note = match point.reserved && !point.configured {
        true => " (a member: invites do not name it)",
        false => "",
    };
    let place = place(point, style);
    format!("{name} {}  {place}{note}{rtt}", point.address)
}

/// Where this machine's place at a relay stands.
pub(super) fn place(point: &MeetingPoint, style: Style) -> String {
    if point.reserved {
        return "keeps a place".to_owned();
    }
    match (point.refusal(), point.refused_since) {
        (Some(why), Some(since)) => {
            let since = print::moment(style, since);
            format!("reached, keeps no place: {why} (since {since})")
        }
        (Some(why), None) => format!("reached, keeps no place: {why}"),
        (None, _) if point.connected => "connected".to_owned(),
        (None, _) if point.denied => "not dialled (transport.deny_cidrs)".to_owned(),
        (None, _) => "not reached".to_owned(),
    }
}

fn nat(nat: &NatInfo) -> String {
    let yes = |is| if is { "yes" } else { "no" }.to_owned();
    let fields = vec![
        ("ipv4", yes(nat.ipv4)),
        ("ipv6", yes(nat.ipv6)),
        ("udp", nat.udp.clone()),
        ("nat", mapping(nat)),
        ("lets in", filtering(nat)),
    ];
    print::fields(&fields)
}

fn mapping(nat: &NatInfo) -> String {
    match (nat.mapping.as_str(), nat.step) {
        ("none", _) => "none".to_owned(),
        ("independent", _) => "the same port for everybody".to_owned(),
        ("dependent", Some(step)) => {
            format!("symmetric: another port for each peer, {step:+} each time")
        }
        ("dependent", None) => "symmetric: another port for each peer".to_owned(),
        _ => "not known yet: fewer than two peers have said where they see this machine".to_owned(),
    }
}

fn filtering(nat: &NatInfo) -> String {
    match (nat.open.as_ref(), nat.filtering.as_str()) {
        (None, _) | (_, "endpoint-independent") => of_socket(nat),
        (Some(open), "address-dependent" | "address-and-port-dependent") => {
            let open = print::clean(open);
            format!("everybody at {open}; elsewhere {}", of_socket(nat))
        }
        (Some(open), _) => format!("everybody at {}", print::clean(open)),
    }
}

/// From where datagrams are let in to a socket that sends.
fn of_socket(nat: &NatInfo) -> String {
    match (nat.filtering.as_str(), &nat.filtering_unknown) {
        ("endpoint-independent", _) => "everybody".to_owned(),
        ("address-dependent", _) => "every port of an address that was sent to".to_owned(),
        ("address-and-port-dependent", _) => "only the port that was sent to".to_owned(),
        (_, Some(why)) => format!("not known: {}", print::clean(why)),
        (_, None) => "not known".to_owned(),
    }
}

/// The NAT before this machine in one line; nothing where there is none, or it is not known whether there is one.
pub(super) fn behind(nat: &NatInfo) -> Option<String> {
    let is_there = matches!(nat.mapping.as_str(), "independent" | "dependent");
    is_there.then(|| format!("{}; lets in {}", mapping(nat), filtering(nat)))
}

/// One end in one line.
pub(super) fn end(nat: &NatInfo) -> String {
    let families = match (nat.ipv4, nat.ipv6) {
        (true, true) => "IPv4 and IPv6",
        (true, false) => "IPv4",
        (false, true) => "IPv6",
        (false, false) if nat.udp == "works" => "addresses of links alone",
        (false, false) => "no family known",
    };
    let udp = match nat.udp.as_str() {
        "blocked" => "UDP blocked",
        "off" => "no UDP port",
        _ => "UDP",
    };
    let mapping = match nat.mapping.as_str() {
        "none" => "no NAT",
        "independent" => "NAT with the same port for everybody",
        "dependent" => "symmetric NAT",
        _ => "NAT not known",
    };
    let is_known = nat.open.is_some() || nat.filtering != "unknown";
    let lets_in = match is_known {
        true => format!(", lets in {}", filtering(nat)),
        false => String::new(),
    };
    format!("{families}, {udp}, {mapping}{lets_in}")
}

fn findings(findings: &[Problem], style: Style) -> String {
    listed(&remedies::each(findings), style)
}

/// The findings in their order, a line each; the remedy of several follows the last of them.
fn listed(groups: &[Group<'_>], style: Style) -> String {
    if groups.is_empty() {
        return "nothing is wrong\n".to_owned();
    }
    let line = |message: &String, colour| {
        let message = print::clean(message);
        format!("{} {message}", style.paint(colour, "!"))
    };
    let told = |group: &Group<'_>| {
        let colour = match group.severity {
            "error" => Colour::Bad,
            _ => Colour::Odd,
        };
        let lines = group.messages.iter().map(|message| line(message, colour));
        let lines: Vec<String> = lines.collect();
        format!("{}   ({})\n", lines.join("\n"), print::clean(&group.help))
    };
    groups.iter().map(told).collect()
}

pub(super) fn doctor(info: &DoctorInfo, style: Style) -> String {
    // What a finding tells is not told with the peer as well.
    let told = |peer: &Diagnosis| {
        let remedy = peer.path.remedy.as_ref();
        remedy.is_some_and(|remedy| info.findings.iter().any(|found| found.help == *remedy))
    };
    let peers: String = info
        .peers
        .iter()
        .map(|peer| diagnosis(peer, told(peer), style))
        .collect();
    let done = |text: &String| format!("done: {}\n", print::clean(text));
    let done: String = info.done.iter().map(done).collect();
    // That there is no router, or nothing to ask it for, is no news.
    let is_asked = |router: &&RouterInfo| {
        let trouble = router.trouble.as_deref();
        !matches!(trouble, Some("no-gateway" | "not-needed"))
    };
    let asked = info.router.iter();
    let asked = asked.flat_map(|first| std::iter::once(first).chain(&first.others));
    let ports: String = asked.filter(is_asked).map(router).collect();
    let names: Vec<&str> = info.peers.iter().map(|peer| peer.name.as_str()).collect();
    done + &peers + &ports + &listed(&remedies::grouped(&info.findings, &names), style)
}

/// One peer. `is_told`: its remedy follows with a finding.
fn diagnosis(d: &Diagnosis, is_told: bool, style: Style) -> String {
    let remedy = d.path.remedy.clone().filter(|_| !is_told);
    let mut out = format!(
        "peer {}  {}\n",
        print::clean(&d.name),
        print::clean(&print::path(style, &d.path))
    );
    out += &print::fields(&[
        ("since", peer::since(style, &d.path)),
        ("cause", d.cause.clone().unwrap_or_default()),
        ("remedy", remedy.unwrap_or_default()),
        ("here", d.here.as_ref().map(end).unwrap_or_default()),
        ("there", d.there.as_ref().map(end).unwrap_or_default()),
    ]);
    if d.cause.is_some() {
        out += &peer::history(style, &d.tried, &d.changes);
    }
    out
}
