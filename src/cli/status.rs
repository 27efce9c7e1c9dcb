//! `status`: what there is, how peers are reached, what is wrong.

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::netcheck;
use super::print::{self, Colour, Style, Table};
use super::subnet::{state, state_word};
use super::value;
use super::{Context, Outcome, Purpose, output};
use crate::api::types::{
    Error, ErrorKind, PeerStatus, Request, Response, Status, SubnetState, SubnetStatus,
};
use crate::model::error::Code;

/// How good it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Level {
    /// The daemon answers
    Live,
    /// Every subnet that is not down can be used
    Ready,
    /// Ready, and nothing is known to be wrong
    Healthy,
}

#[derive(Debug, Default, Args)]
pub(super) struct StatusArgs {
    /// ID, name, or at least the first 8 characters of the ID; all where none is named
    #[arg(value_parser = value::subnet)]
    subnet: Option<String>,
    /// Again every 2 s until Ctrl-C
    #[arg(long, conflicts_with = "check")]
    watch: bool,
    /// Exit 9 where it is not so
    #[arg(long, value_name = "LEVEL")]
    check: Option<Level>,
}

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

pub(super) async fn run(args: StatusArgs, context: &Context) -> Result<Outcome, Error> {
    let request = Request::Status {
        subnet: args.subnet,
    };
    if !args.watch {
        let response = context.client.call(&request).await?;
        let mut outcome = Outcome::of(&response, context.style)?.asked_for();
        if let (Some(level), Response::Status(status)) = (args.check, &response) {
            outcome.error = shortfall(level, status);
            outcome.purpose = Purpose::Verdict;
        }
        return Ok(outcome);
    }
    let redraw = if !context.json && std::io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    loop {
        let response = context.client.call(&request).await?;
        // The clock moves while we watch.
        let style = Style {
            now: Style::of_process(context.colours_refused).now,
            ..context.style
        };
        let Outcome { text, json, .. } = Outcome::of(&response, style)?;
        let shown = if context.json {
            json
        } else {
            format!("{redraw}{text}")
        };
        if output::write(&shown)? == output::Written::Unread {
            return Ok(Outcome::default());
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(Outcome::default()),
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
}

/// Why the status is below a level.
fn shortfall(level: Level, status: &Status) -> Option<Error> {
    let degraded = |why: String| Some(Error::new(ErrorKind::Degraded, Code::Degraded, why));
    if level == Level::Live {
        return None;
    }
    let waiting = status
        .subnets
        .iter()
        .find(|s| !matches!(s.state, SubnetState::Ready | SubnetState::Down));
    if let Some(s) = waiting {
        return degraded(format!(
            "not ready: subnet {} is {}",
            s.name,
            state_word(s.state)
        ));
    }
    if !status.ready {
        return degraded("not ready: the daemon has not set everything up yet".to_owned());
    }
    let problem = status.problems.iter().find(|p| p.severity != "info");
    match (level, problem) {
        (Level::Healthy, Some(p)) => {
            degraded(format!("not healthy: {}", p.message)).map(|e| e.hint(p.help.clone()))
        }
        _ => None,
    }
}

pub(super) fn render(status: &Status, style: Style) -> String {
    let mut out = String::new();
    if status.relay_only {
        out += &format!(
            "node {}  only relays for others\n  try:  byway relay ls           (for whom, and how much)\n  try:  byway id                 \
             (the addresses that they name)\n",
            status.name
        );
    } else if status.subnets.is_empty() {
        let ended = status.problems.iter().any(|p| p.code == Code::SubnetEnded);
        let when = if ended { "any more" } else { "yet" };
        out += &format!(
            "node {}  no subnet {when}\n  try:  byway create NAME       (founds one)\n  try:  byway join ID|INVITE    (asks to \
             be let into one)\n",
            status.name
        );
    }
    for (i, s) in status.subnets.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        out += &subnet(s, style);
    }
    if let Some(nat) = status.nat.as_ref().and_then(netcheck::behind) {
        out += &format!("nat: {nat}\n");
    }
    if let Some(service) = status.host_names.as_ref().and_then(|names| {
        let works = names.state == "works";
        names.service.as_ref().filter(|_| works)
    }) {
        let service = print::clean(service);
        out += &format!("names: this machine's programs resolve them by {service}\n");
    }
    for p in &status.problems {
        let help = if p.help.is_empty() {
            String::new()
        } else {
            format!("   ({})", print::clean(&p.help))
        };
        let mark = style.paint(
            if p.severity == "error" {
                Colour::Bad
            } else {
                Colour::Odd
            },
            "!",
        );
        out += &format!("{mark} {}{help}\n", print::clean(&p.message));
    }
    out
}

fn subnet(s: &SubnetStatus, style: Style) -> String {
    let id: String = s.id.to_string().chars().take(12).collect();
    let members = match s.members {
        0 => String::new(),
        1 => "1 member   ".to_owned(),
        n => format!("{n} members   "),
    };
    let own = print::addresses(&s.addresses);
    let mut out = format!(
        "subnet {}  {id}  {}   {members}you: {}  {own}",
        s.name,
        state(s.state, style),
        s.member
    );
    out.truncate(out.trim_end().len());
    out.push('\n');
    if let Some(waiting) = &s.waiting {
        out += &super::waiting::fields(waiting, style);
    }
    if !s.peers.is_empty() {
        let mut table = Table::new(&[
            "PEER",
            "ADDRESS",
            "PATH",
            "RTT",
            "LOSS",
            "TX/RX",
            "WORKLOADS",
        ]);
        for peer in &s.peers {
            table.row(peer_row(peer, style));
        }
        out += &table.render();
    }
    out += &attached_here(s);
    out += &dropped(s);
    out
}

/// The line of the workloads that are attached to this machine, if any.
fn attached_here(s: &SubnetStatus) -> String {
    if s.workloads.is_empty() {
        return String::new();
    }
    let here: Vec<String> = s
        .workloads
        .iter()
        .map(|w| {
            // One that went away keeps its place, and is told apart from those that are here.
            let away = match w.away_since {
                Some(_) => format!(" ({})", w.state),
                None => String::new(),
            };
            format!(
                "{} {}{away}",
                w.workload,
                w.addresses
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default()
            )
        })
        .collect();
    format!("here: {}\n", print::clean(&here.join(", ")))
}

/// The line of the packets that were dropped, by reason, if any were.
fn dropped(s: &SubnetStatus) -> String {
    let drops: Vec<String> = s
        .drops
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(why, n)| format!("{why} {n}"))
        .collect();
    if drops.is_empty() {
        String::new()
    } else {
        format!("dropped: {}\n", print::clean(&drops.join(", ")))
    }
}

fn peer_row(p: &PeerStatus, style: Style) -> [String; 7] {
    let address = p
        .addresses
        .iter()
        .find(|a| a.is_ipv4())
        .or(p.addresses.first());
    let away = matches!(p.path.kind.as_str(), "offline" | "idle");
    let here = |text: String| if away { String::new() } else { text };
    [
        p.name.to_string(),
        address.map(ToString::to_string).unwrap_or_default(),
        print::path(style, &p.path),
        here(p.rtt_ms.map_or("-".to_owned(), print::millis)),
        here(p.loss.map_or("-".to_owned(), print::percent)),
        here(format!(
            "{} / {}",
            print::bytes(p.tx_bytes),
            print::bytes(p.rx_bytes)
        )),
        print::listed(&p.workloads),
    ]
}
