//! The command line: arguments to requests, answers to text or JSON, errors to exit codes.
//!
//! One file a noun; each holds its verbs' arguments, the request they make and how the answer looks. Nothing here knows
//! more than the control socket tells, except `daemon`, `cleanup` and `config`, which work without a daemon and get what
//! they start handed in ([`Entry`]), and `integration`, which puts files where an engine looks for them.
//!
//! Where SUBNET is left out, the line is read with this machine's only one in its place (`left_out`); without any verb the
//! status is shown, or where no daemon answers the help. `run` prints nothing of its own on standard output. A join that waits is watched (`waiting`). Each verb's help ends with
//! lines that can be typed (`examples`).
//!
//! An answer that cannot be written is a failure (`output`); verbs that end something ask at a terminal (`confirm`).
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 daemon not reachable, 4 not permitted, 5 no such object, 6 conflict,
//! 7 waiting for approval or refused, 8 timed out, 9 degraded.

mod config;
mod confirm;
mod daemon;
mod dns;
mod examples;
mod import;
mod integration;
mod invite;
mod lease;
mod left_out;
pub mod log;
mod map;
mod member;
mod netcheck;
mod output;
mod peer;
mod ping;
pub(crate) mod print;
mod probe;
mod relay;
mod run;
mod status;
mod subnet;
mod usage;
mod user_socket;
mod value;
mod waiting;
mod workload;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::api::client::Client;
use crate::api::types::{Done, Error, ErrorKind, Request, Response, SubnetState, default_socket};
use crate::config::Config;
use crate::host::Guests;
use crate::model::error::Code;
use crate::text;
use print::Style;

/// What the composition root does for the verbs that are not requests to a daemon.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Runs the daemon until it is told to stop.
    pub run: fn(Config) -> anyhow::Result<()>,
    /// Tells whether the daemon could run here: rights, devices, tools.
    pub preflight: fn(&Config) -> Result<(), Error>,
    /// Removes every trace a dead daemon left on this machine, or with `true` any; refused while that one runs, or with
    /// `true` any here. Makes nothing where there is no state.
    pub cleanup: fn(&Config, bool, Guests) -> Result<Done, Error>,
}

/// Private addresses for containers and machines, across peers.
#[derive(Debug, Parser)]
#[command(
    name = "byway",
    bin_name = "byway",
    version,
    about,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Options of every verb, before or after it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Control socket [default: BYWAY_SOCKET, else /run/byway/byway.sock]
    #[arg(long, global = true, value_name = "PATH", overrides_with = "socket")]
    socket: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Nothing of what was done; what was asked for and an invite that was made are shown
    #[arg(long, global = true)]
    quiet: bool,
    /// No colours
    #[arg(long, global = true)]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    Daemon(daemon::DaemonArgs),
    /// Enter namespaces for a daemon that may not (its unit starts this)
    #[command(hide = true)]
    Helper(daemon::HelperArgs),
    /// Found a subnet: this node owns it
    Create(subnet::CreateArgs),
    /// Join a subnet by its ID or an invite
    Join(subnet::JoinArgs),
    /// Leave a subnet and remove every trace of it here
    Leave(subnet::EndedSubnet),
    /// End a subnet for every member (owner only)
    Destroy(subnet::EndedSubnet),
    /// Subnets this node knows
    #[command(subcommand)]
    Subnet(subnet::SubnetVerb),
    /// Invites: capabilities to join
    #[command(subcommand)]
    Invite(invite::InviteVerb),
    /// Members of a subnet, and who asks to become one
    #[command(subcommand)]
    Member(member::MemberVerb),
    /// Prefixes and addresses that belong to members
    #[command(subcommand)]
    Lease(lease::LeaseVerb),
    /// Take memberships on the wire again
    Up(subnet::OptionalSubnet),
    /// Take memberships off the wire without leaving
    Down(subnet::OptionalSubnet),
    /// Give a workload an address of its own in a subnet
    #[command(subcommand)]
    Attach(workload::AttachVerb),
    /// Take a workload out of its subnet: its name is freed, its address kept for when it comes back
    Detach(workload::DetachArgs),
    /// Workloads attached here
    #[command(subcommand)]
    Workload(workload::WorkloadVerb),
    /// Run a program with an address of its own in a subnet
    Run(run::RunArgs),
    /// Lead from a socket of this user's to the daemon's (its unit starts this)
    #[command(hide = true, name = "user-socket")]
    UserSocket(user_socket::UserSocketArgs),
    /// The inner part of `run`, which becomes the program
    #[command(hide = true, name = "run-inside")]
    RunInside(run::inside::InsideArgs),
    /// Names of a subnet
    #[command(subcommand)]
    Dns(dns::DnsVerb),
    /// Ports of this machine mapped to workloads
    #[command(subcommand)]
    Map(map::MapVerb),
    /// Make byway a part of the engines that run containers here
    #[command(subcommand)]
    Integration(integration::IntegrationVerb),
    /// Names, addresses and port maps for workloads to come, from a file that describes them
    #[command(subcommand)]
    Import(import::ImportVerb),
    /// Subnets, peers and how they are reached, problems
    Status(status::StatusArgs),
    /// Who this node is
    Id,
    /// Machines this node knows
    #[command(subcommand)]
    Peer(peer::PeerVerb),
    /// What this node forwards for others
    #[command(subcommand)]
    Relay(relay::RelayVerb),
    /// Measure the way to a peer, name or address
    Ping(ping::PingArgs),
    /// What stands between this machine and others: families, UDP, NAT, meeting points, local networks, the proxy, ports of the
    /// router, and the address outside
    Netcheck,
    /// Why a peer is not reached better, and what to do about it
    Doctor(netcheck::DoctorArgs),
    /// Measure round trip, jitter, loss, bandwidth and path MTU to a peer
    Probe(probe::ProbeArgs),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// Have the daemon read its configuration again
    Reload,
    /// Counters as OpenMetrics text, as Prometheus reads it
    Metrics,
    /// Remove every trace a dead daemon left on this machine
    Cleanup(daemon::CleanupArgs),
    /// Versions of this program and of the daemon
    Version,
}

/// What an answer is for, which decides whether `--quiet` leaves it out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Purpose {
    /// It tells what was done: left out when that went well.
    #[default]
    Report,
    /// It is what was asked for: always shown.
    Answer,
    /// It says why the exit code is as it is: left out.
    Verdict,
}

/// How a verb ended: what to print and the exit code.
#[derive(Debug, Default)]
struct Outcome {
    /// For people.
    text: String,
    /// For programs, one line.
    json: String,
    /// Why the exit code is not 0 although there is something to print.
    error: Option<Error>,
    /// For people, beside the answer: on standard error.
    note: String,
    /// What of it is shown once only.
    once: Option<output::Once>,
    purpose: Purpose,
    /// The exit code of a program that was run, which is ours.
    ended: Option<u8>,
}

impl Outcome {
    /// A program has run, and all was said.
    fn of_program(exit: u8) -> Outcome {
        Outcome {
            ended: Some(exit),
            ..Outcome::default()
        }
    }

    fn of(response: &Response, style: Style) -> Result<Outcome, Error> {
        let note = match response {
            Response::Joined(joined) => subnet::ignored(joined),
            Response::Created(created) => noted(&created.notes),
            Response::Invite(invite) => noted(&invite.notes),
            _ => String::new(),
        };
        Ok(Outcome {
            text: render(response, style),
            json: json(response)?,
            note,
            ..Outcome::default()
        })
    }

    /// The same, as what was asked for.
    fn asked_for(self) -> Outcome {
        Outcome {
            purpose: Purpose::Answer,
            ..self
        }
    }

    /// What of it is printed on standard output.
    fn shown(&self, context: &Context) -> &str {
        let whole = if context.json { &self.json } else { &self.text };
        let held_back = match self.purpose {
            Purpose::Answer => false,
            Purpose::Report => self.error.is_none(),
            Purpose::Verdict => self.error.is_none() || !context.json,
        };
        match &self.once {
            _ if !context.quiet || !held_back => whole,
            // No verb shows it again.
            Some(_) if context.json => whole,
            Some(once) => once.line(),
            None => "",
        }
    }
}

/// What everything that runs needs.
struct Context {
    client: Client,
    style: Style,
    json: bool,
    quiet: bool,
    /// `--socket`, where it was given.
    socket: Option<PathBuf>,
    colours_refused: bool,
}

impl Context {
    /// Prints at once what is not the end yet; whether somebody still reads.
    fn show(&self, text: &str) -> Result<bool, Error> {
        if self.quiet {
            Ok(true)
        } else {
            output::write(text).map(|w| w == output::Written::Whole)
        }
    }
}

/// Runs the command line; the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, entry: Entry) -> u8 {
    let args = left_out::moved(args.into_iter().collect());
    let cli = match left_out::parse(&args) {
        Ok(cli) => cli,
        Err(left_out::Refused::Parser(e)) => return usage::report(&e, &args),
        Err(left_out::Refused::Own(e)) => return usage::refuse(&e, &args),
    };
    let Global {
        socket,
        json,
        quiet,
        no_color,
    } = cli.global;
    let context = Context {
        client: Client::new(socket.clone().unwrap_or_else(default_socket)),
        style: Style::of_process(no_color),
        json,
        quiet,
        socket,
        colours_refused: no_color,
    };
    let outcome = match cli.verb {
        Some(verb) => dispatch(verb, &context, entry),
        None => blocking(bare(&context)),
    };
    finish(
        &outcome.unwrap_or_else(|error| Outcome {
            error: Some(error),
            ..Outcome::default()
        }),
        &context,
    )
}

/// `byway` alone: how things stand, or where no daemon answers what there is to type.
async fn bare(context: &Context) -> Result<Outcome, Error> {
    match status::run(status::StatusArgs::default(), context).await {
        Err(error) if error.kind == ErrorKind::NoDaemon && !context.json => Ok(Outcome {
            text: usage::help(),
            ..Outcome::default()
        }
        .asked_for()),
        outcome => outcome,
    }
}

fn finish(outcome: &Outcome, context: &Context) -> u8 {
    let shown = outcome.shown(context);
    // With JSON one object on standard output: the answer where there is one, else the error.
    let written = if shown.is_empty() {
        Ok(())
    } else {
        output::answer(shown, outcome.once.as_ref(), context)
    };
    // Why it failed comes before whether the answer could be written.
    let exit = outcome
        .error
        .as_ref()
        .or(written.as_ref().err())
        .map_or(outcome.ended.unwrap_or(0), |error| error.kind.exit_code());
    match &outcome.error {
        Some(error) if !context.json || shown.is_empty() => {
            output::error(context.style, context.json, error)
        }
        None if !context.quiet || outcome.purpose == Purpose::Answer => {
            print::stderr(&outcome.note);
        }
        _ => {}
    }
    if let Err(error) = written {
        // Standard output takes nothing: not the object of an error either.
        print::stderr(&print::error(context.style, &error));
    }
    exit
}

fn dispatch(verb: Verb, context: &Context, entry: Entry) -> Result<Outcome, Error> {
    let subnet = if let Verb::Invite(verb) = &verb {
        verb.subnet().map(ToOwned::to_owned)
    } else {
        None
    };
    let request = match verb {
        Verb::Daemon(args) => return daemon::run(args, context, entry),
        Verb::Cleanup(args) => return daemon::cleanup(args, context, entry),
        Verb::Helper(args) => return daemon::helper(args, context),
        Verb::UserSocket(args) => return user_socket::run(args, context),
        Verb::Run(args) => return Ok(Outcome::of_program(run::run(args, context))),
        Verb::RunInside(args) => return Ok(Outcome::of_program(run::inside::run(args))),
        Verb::Config(verb) => return config::run(verb, context),
        Verb::Integration(verb) => match integration::begin(verb, context)? {
            integration::Begun::Done(outcome) => return Ok(outcome),
            integration::Begun::Ask(request) => request,
        },
        Verb::Status(args) => return blocking(status::run(args, context)),
        Verb::Ping(args) => return blocking(ping::run(args, context)),
        Verb::Version => return blocking(version(context)),
        Verb::Import(verb) => return blocking(import::run(verb, context)),
        Verb::Lease(verb) => return blocking(lease::run(verb, context)),
        Verb::Create(args) => args.request()?,
        Verb::Join(args) => {
            let request = args.request()?;
            return ended(&blocking(waiting::join(&request, context))?, None, context);
        }
        Verb::Leave(args) => {
            confirm::subnet(&args.subnet, args.yes, "this machine leaves it", context)?;
            Request::Leave {
                subnet: args.subnet,
            }
        }
        Verb::Destroy(args) => {
            confirm::subnet(&args.subnet, args.yes, "it ends for every member", context)?;
            Request::Destroy {
                subnet: args.subnet,
            }
        }
        Verb::Subnet(verb) => verb.request(),
        Verb::Invite(verb) => verb.request(),
        Verb::Member(verb) => {
            verb.confirmed()?;
            verb.request()
        }
        Verb::Up(args) => Request::Up {
            subnet: args.subnet,
        },
        Verb::Down(args) => Request::Down {
            subnet: args.subnet,
        },
        Verb::Attach(verb) => verb.request(|| {
            blocking(left_out::only(
                context,
                "byway subnet ls      (then the same with --subnet SUBNET)",
            ))
        })?,
        Verb::Detach(args) => Request::Detach {
            workload: args.workload,
            subnet: args.subnet,
            interface: None,
        },
        Verb::Workload(verb) => verb.request()?,
        Verb::Dns(verb) => verb.request(),
        Verb::Map(verb) => verb.request()?,
        Verb::Id => Request::Id,
        Verb::Peer(verb) => verb.request(),
        Verb::Probe(args) => args.request(),
        Verb::Netcheck => Request::Netcheck,
        Verb::Doctor(args) => args.request(),
        Verb::Relay(verb) => verb.request(),
        Verb::Reload => Request::Reload,
        Verb::Metrics => Request::Metrics,
    };
    let outcome = ended(
        &blocking(context.client.call(&request))?,
        subnet.as_deref(),
        context,
    )?;
    Ok(if request.changes() {
        outcome
    } else {
        outcome.asked_for()
    })
}

/// What an answer comes to; `subnet` is what a person called the subnet.
fn ended(response: &Response, subnet: Option<&str>, context: &Context) -> Result<Outcome, Error> {
    let mut outcome = Outcome::of(response, context.style)?;
    match response {
        Response::Netcheck(info) => return Ok(netcheck::judged(outcome, &info.findings)),
        Response::Doctor(info) => return Ok(netcheck::judged(outcome, &info.findings)),
        _ => {}
    }
    outcome.once = output::Once::of(response, subnet);
    if let Response::Joined(joined) = response
        && joined.state == SubnetState::Pending
    {
        outcome.error = Some(waiting::pending(joined));
    }
    Ok(outcome)
}

/// Notes for standard error, one a line.
fn noted(notes: &[String]) -> String {
    let line = |note: &String| format!("note: {}\n", print::clean(note));
    notes.iter().map(line).collect()
}

/// Runs one verb's future on this thread.
fn blocking<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| {
            Error::new(
                ErrorKind::Failed,
                Code::Failed,
                format!("start the runtime: {e}"),
            )
        })?
        .block_on(work)
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        .map(|json| text::json(&json) + "\n")
        .map_err(|e| Error::new(ErrorKind::Failed, Code::Failed, format!("write JSON: {e}")))
}

/// An answer as people see it.
fn render(response: &Response, style: Style) -> String {
    match response {
        Response::Created(created) => subnet::created(created),
        Response::Joined(joined) => subnet::joined(joined, style),
        Response::Done(done) => format!("{}\n", print::clean(&done.message)),
        Response::Subnets { subnets } => subnet::list(subnets, style),
        Response::Subnet(info) => subnet::show(info, style),
        Response::Host(info) => subnet::host(info),
        Response::Invite(invite) => invite::created(invite, style),
        Response::Invites { invites } => invite::list(invites, style),
        Response::Members { members } => member::list(members, style),
        Response::Requests { requests } => member::requests(requests, style),
        Response::Leases { leases } => lease::list(leases),
        Response::Attached(attached) => workload::attached(attached),
        Response::Workloads { workloads } => workload::list(workloads),
        Response::Workload(info) => workload::show(info, style),
        Response::Imported(made) => import::imported(made),
        Response::Imports { imports } => import::list(imports),
        Response::Dns { records } => dns::list(records),
        Response::Maps { maps } => map::list(maps),
        Response::Map(info) => map::list(std::slice::from_ref(info)),
        Response::Status(status) => status::render(status, style),
        Response::Id(id) => peer::id(id),
        Response::Peers { peers } => peer::list(peers, style),
        Response::Netcheck(info) => netcheck::netcheck(info, style),
        Response::Doctor(info) => netcheck::doctor(info, style),
        Response::Probe(info) => probe::show(info, style),
        Response::Resolved(peer) => peer::resolved(peer),
        Response::Peer(info) => peer::show(info, style),
        Response::Ping(info) => ping::summary(info),
        Response::Relay(info) => relay::list(info, style),
        Response::Config(info) => config::in_force(info, true),
        Response::Metrics { text } => text.clone(),
        Response::Version { version, wire } => {
            format!("daemon {} (wire {wire})\n", print::clean(version))
        }
    }
}

/// `version`: this program's always, the daemon's where one answers.
async fn version(context: &Context) -> Result<Outcome, Error> {
    let own = env!("CARGO_PKG_VERSION");
    let (text, daemon) = match context.client.call(&Request::Version).await {
        Ok(Response::Version { version, wire }) => {
            let daemon = serde_json::json!({"version": version, "wire": wire});
            (
                format!(
                    "byway {own}\ndaemon {} (wire {wire})\n",
                    print::clean(&version)
                ),
                daemon,
            )
        }
        _ => (format!("byway {own}\n"), serde_json::Value::Null),
    };
    let shown = serde_json::json!({"schema": "byway.version/1", "version": own, "daemon": daemon});
    Ok(Outcome {
        text,
        json: format!("{shown}\n"),
        ..Outcome::default()
    }
    .asked_for())
}

#[cfg(test)]
mod tests;
