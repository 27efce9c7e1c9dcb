//! `import compose`: the names, addresses and port maps that a compose file describes.
//!
//! The file is read here, with the rights and the variables of whoever types the line. The daemon gets the whole list and
//! carries it out or refuses it.

mod file;
mod keys;
mod network;
mod ports;
mod service;
mod variables;
mod yaml;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use clap::{Args, Subcommand};
use nix::fcntl::OFlag;

use super::print::{self, Table};
use super::value::{self, Checked, wrong};
use super::{Context, Outcome, left_out};
use crate::api::types::{
    Error, ErrorKind, ImportInfo, ImportWorkload, Imported, ImportedWorkload, Request, Response,
};
use crate::model::error::Code;
use crate::model::id::Name;
use file::{Beside, File};
use network::Place;
use variables::Variables;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

#[derive(Debug, Args)]
#[command(after_long_help = keys::help())]
pub(super) struct ComposeArgs {
    /// The compose file
    #[arg(value_name = "FILE")]
    file: String,
    /// The subnet of services whose network names none; may be left out where this machine has one
    #[arg(long, value_parser = value::subnet)]
    subnet: Option<String>,
    /// Name of the project [default: COMPOSE_PROJECT_NAME, else the file's, else that of its directory]
    #[arg(long, short, value_name = "NAME")]
    project: Option<String>,
    /// Bring back what was before the last import of this file
    #[arg(long, conflicts_with_all = ["subnet", "project"])]
    rollback: bool,
    /// Take away all that the file brought; the file need not be there any more
    #[arg(long, conflicts_with_all = ["subnet", "project", "rollback"])]
    remove: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ImportVerb {
    /// A compose file: all of it or nothing; the same again changes nothing, an edited one what was edited
    Compose(ComposeArgs),
    /// The files that were imported, and what they brought
    Ls,
}

pub(super) async fn run(verb: ImportVerb, context: &Context) -> Result<Outcome, Error> {
    let args = match verb {
        ImportVerb::Compose(args) => args,
        ImportVerb::Ls => {
            let answer = context.client.call(&Request::ImportLs).await?;
            return Outcome::of(&answer, context.style);
        }
    };
    let path = std::path::absolute(&args.file)
        .map_err(|e| wrong(Code::File, format!("{}: {e}", args.file)))?;
    let source = path.display().to_string();
    if args.rollback {
        let answer = context.client.call(&Request::ImportBack { source }).await?;
        return Outcome::of(&answer, context.style);
    }
    if args.remove {
        let answer = remove(source, context).await?;
        return Outcome::of(&answer, context.style);
    }
    let (read, here) = (read(&args, &path, context).await?, &context.client);
    let mut notes = read.notes.clone();
    let left_out = read.left_out.iter();
    notes.extend(left_out.map(|(name, why)| format!("service {name} is not imported: {why}")));
    notes.extend(without_address(&read));
    let only = match args.subnet {
        Some(subnet) => subnet,
        None if read
            .services
            .iter()
            .any(|(place, _)| *place == Place::Unnamed) =>
        {
            let again = format!("byway import compose {} --subnet SUBNET", args.file);
            left_out::only(context, &again).await?
        }
        None => String::new(),
    };
    let workloads = read.services.into_iter().map(|(place, service)| {
        let subnet = match place {
            Place::Named(subnet) => subnet,
            Place::Unnamed => only.clone(),
        };
        service.asked(subnet)
    });
    let workloads = workloads.collect::<Checked<Vec<ImportWorkload>>>()?;
    let answer = here.call(&Request::Import { source, workloads }).await;
    let answer = answer.map_err(|error| match error.message.starts_with("line ") {
        true => in_file(&args.file, error),
        false => error,
    })?;
    let outcome = Outcome::of(&answer, context.style)?;
    Ok(Outcome {
        note: super::noted(&notes),
        ..outcome
    })
}

/// Reads the file, with the variables of this process and of the file `.env` beside it.
async fn read(args: &ComposeArgs, path: &Path, context: &Context) -> Checked<File> {
    let text = value::text_of(&args.file, MAX_FILE)?;
    let beside = path.parent().unwrap_or(Path::new("/"));
    let env = env_of(&beside.join(".env"))?;
    let process: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let variables = Variables::new(process, &env)?;
    let subnets = match context.client.call(&Request::SubnetLs).await? {
        Response::Subnets { subnets } => subnets,
        _ => vec![],
    };
    let directory = beside.file_name().unwrap_or_default().to_string_lossy();
    let found = file::read(
        &text,
        &Beside {
            project: args.project.as_deref(),
            directory: &directory,
            variables: &variables,
            is_subnet: &|name| subnets.iter().any(|s| s.name.as_str() == name),
        },
    );
    found.map_err(|error| in_file(&args.file, error))
}

/// The text of a file `.env`; empty where there is none. Nobody named that file, so only a regular one is read, and no
/// more of it than [`MAX_FILE`]: a pipe or a device of that name would keep whoever imports waiting.
fn env_of(file: &Path) -> Checked<String> {
    let refused = |why: String| wrong(Code::File, format!("read {}: {why}", file.display()));
    // Without waiting: opening a pipe would wait for who writes to it.
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits() | OFlag::O_NOCTTY.bits())
        .open(file);
    let opened = match opened {
        Ok(opened) => opened,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(refused(e.to_string())),
    };
    let kind = opened.metadata().map_err(|e| refused(e.to_string()))?;
    if !kind.is_file() {
        return Err(refused("it is no regular file".into()));
    }
    let mut text = String::new();
    let read = opened.take(MAX_FILE + 1).read_to_string(&mut text);
    match read.map_err(|e| refused(e.to_string()))? as u64 {
        0..=MAX_FILE => Ok(text),
        _ => Err(refused(format!("it is larger than {MAX_FILE} bytes"))),
    }
}

/// Has a refusal name the file.
fn in_file(file: &str, error: Error) -> Error {
    Error {
        message: format!("{file}: {}", error.message),
        ..error
    }
}

/// Has this machine have nothing of a file any more, whether that is still there or not.
async fn remove(source: String, context: &Context) -> Checked<Response> {
    let files = match context.client.call(&Request::ImportLs).await? {
        Response::Imports { imports } => imports,
        _ => vec![],
    };
    if !files.iter().any(|file| file.source == source) {
        let message = format!("nothing was imported of {}", value::shown(&source));
        return Err(Error::new(ErrorKind::NotFound, Code::Import, message)
            .hint("byway import ls      (the files, by their paths)"));
    }
    let workloads = vec![];
    let request = Request::Import { source, workloads };
    context.client.call(&request).await
}

/// Says which services get another address than the one that is kept, where their engine does not tell who asks for one.
fn without_address(file: &File) -> Option<String> {
    let all = file.services.iter().map(|(_, service)| service);
    let bare = all.filter(|s| s.by_network && s.addresses.is_empty());
    let names: Vec<&str> = bare.map(|s| s.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "Docker before 29 gives {} any free address; ipv4_address in the file fixes it",
            names.join(", ")
        )
    })
}

impl service::Service {
    /// What the daemon is asked for.
    fn asked(self, subnet: String) -> Checked<ImportWorkload> {
        let name: Name = value::name(&self.name)?;
        Ok(ImportWorkload {
            name,
            subnet,
            containers: vec![self.container],
            addresses: self.addresses,
            mac: self.mac,
            aliases: self.aliases.into_iter().collect(),
            maps: self.maps,
            ipv4_only: self.ipv4_only,
            line: u32::try_from(self.line).ok(),
        })
    }
}

/// The files that were imported, each with what it brought.
pub(super) fn list(imports: &[ImportInfo]) -> String {
    let mut text = String::new();
    for file in imports {
        let back = if file.rollback {
            "  (can be rolled back)"
        } else {
            ""
        };
        text += &format!("{}{back}\n", print::clean(&file.source));
        if !file.workloads.is_empty() {
            text += &table(&file.workloads);
        }
    }
    text
}

/// What a file brought, a line for each workload.
fn table(workloads: &[ImportedWorkload]) -> String {
    let mut table = Table::new(&[
        "WORKLOAD",
        "SUBNET",
        "ADDRESSES",
        "ALIASES",
        "MAPS",
        "STATE",
    ]);
    for w in workloads {
        table.row([
            w.workload.to_string(),
            w.subnet.to_string(),
            print::addresses(&w.addresses),
            w.aliases.join(", "),
            w.maps.join(", "),
            if w.here { "here" } else { "planned" }.to_owned(),
        ]);
    }
    table.render()
}

pub(super) fn imported(made: &Imported) -> String {
    let source = print::clean(&made.source);
    if made.workloads.is_empty() {
        let removed = print::clean(&made.removed.join(", "));
        return format!("nothing of {source} is here any more; removed: {removed}\n");
    }
    let mut text = table(&made.workloads);
    if !made.removed.is_empty() {
        text += &format!("removed: {}\n", print::clean(&made.removed.join(", ")));
    }
    if !made.changed {
        text += "nothing is changed\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_of_a_bounded_size_is_read_beside_the_compose_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(".env");
        let says = |what: &str| {
            let error = env_of(&file).unwrap_err();
            assert_eq!(error.code, Code::File);
            assert!(error.message.contains(what), "{}", error.message);
            assert!(error.message.contains(".env"), "{}", error.message);
        };
        assert_eq!(env_of(&file).unwrap(), "", "there is none");
        // A pipe that nobody writes to: opening it the usual way would wait for ever.
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        says("no regular file");
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        says("no regular file");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        says("no regular file");
        std::fs::remove_dir(&file).unwrap();
        // A link to a regular file is one.
        let real = dir.path().join("real");
        std::fs::write(&real, "A=1").unwrap();
        std::os::unix::fs::symlink(&real, &file).unwrap();
        assert_eq!(env_of(&file).unwrap(), "A=1");
        let most = usize::try_from(MAX_FILE).unwrap();
        std::fs::write(&real, "x".repeat(most)).unwrap();
        assert_eq!(env_of(&file).unwrap().len(), most);
        std::fs::write(&real, "x".repeat(most + 1)).unwrap();
        says("larger than 1048576 bytes");
    }
}
