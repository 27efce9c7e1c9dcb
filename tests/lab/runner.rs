//! The `main` of the tests that need a kernel to themselves: one at a time, each says which set it is in, and what
//! cannot run here is counted as skipped, never as passed.
//!
//! Output: a line `test NAME ... ok|FAILED|skipped (reason)` each, `SKIP NAME: reason` for what was skipped, and at the
//! end one line `N passed, N failed, N skipped`. Arguments: any number of name parts, `--exact`, `--list`; `BYWAY_TESTS=ci`
//! adds those that take up to minutes, `--all` or `BYWAY_TESTS=all` these and the longest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use super::{Lab, netns};

/// How often a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// With every change.
    Fast,
    /// With every change that is about to be published: seconds to minutes each, ten minutes together.
    Ci,
    /// Only where everything is asked for.
    All,
}

/// One test.
#[derive(Clone, Copy)]
pub struct Case {
    /// The claim it proves.
    pub name: &'static str,
    /// How often it runs.
    pub set: Set,
    /// Programs it needs beyond those of every test.
    pub needs: &'static [&'static str],
    /// The test.
    pub run: fn(&Lab) -> Result<()>,
}

/// A case in the fast set whose name is that of its function.
#[macro_export]
macro_rules! fast {
    ($name:ident $(, $need:literal)*) => {
        $crate::lab::runner::Case { name: stringify!($name), set: $crate::lab::runner::Set::Fast, needs: &[$($need),*], run: $name }
    };
}

/// A case in the set of CI whose name is that of its function.
#[macro_export]
macro_rules! ci {
    ($name:ident $(, $need:literal)*) => {
        $crate::lab::runner::Case { name: stringify!($name), set: $crate::lab::runner::Set::Ci, needs: &[$($need),*], run: $name }
    };
}

/// A case in the long set whose name is that of its function.
#[macro_export]
macro_rules! long {
    ($name:ident $(, $need:literal)*) => {
        $crate::lab::runner::Case { name: stringify!($name), set: $crate::lab::runner::Set::All, needs: &[$($need),*], run: $name }
    };
}

struct Options {
    filters: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
    set: Set,
}

impl Options {
    fn parse() -> Options {
        let mut options = Options {
            filters: Vec::new(),
            exact: false,
            list: false,
            ignored: false,
            set: match std::env::var("BYWAY_TESTS").as_deref() {
                Ok("all") => Set::All,
                Ok("ci") => Set::Ci,
                _ => Set::Fast,
            },
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--ignored" => options.ignored = true,
                "--all" => options.set = Set::All,
                // Those of cargo's own harness that take a value.
                "--format" | "--test-threads" | "--color" | "--skip" | "--logfile" => {
                    drop(args.next())
                }
                flag if flag.starts_with('-') => {}
                filter => options.filters.push(filter.to_owned()),
            }
        }
        options
    }

    fn wants(&self, case: &Case) -> bool {
        let hit = |f: &String| {
            if self.exact {
                case.name == f
            } else {
                case.name.contains(f.as_str())
            }
        };
        self.filters.is_empty() || self.filters.iter().any(hit)
    }

    /// Why a test cannot run here, or is not asked for.
    fn obstacle(&self, case: &Case) -> Option<String> {
        if case.set > self.set {
            let name = if case.set == Set::Ci { "ci" } else { "all" };
            return Some(format!(
                "set: {name}; run with BYWAY_TESTS={name} (scripts/test --{name})"
            ));
        }
        missing(&["ip", "nft", "ping", "dig", "sysctl", "timeout", "python3"])
            .or_else(|| missing(case.needs))
    }
}

/// Whether the machine can run any of this at all.
fn unfit() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root for network namespaces".to_owned());
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("needs /dev/net/tun".to_owned());
    }
    let probe = format!("bwt-{}-probe", std::process::id());
    match super::sh("ip", &["netns", "add", &probe])
        .and_then(|_| super::sh("ip", &["netns", "del", &probe]))
    {
        Ok(_) => None,
        Err(e) => Some(format!("no network namespaces here: {e:#}")),
    }
}

/// The first of these programs that is not installed.
pub fn missing(programs: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |p: &str| std::env::split_paths(&path).any(|dir| dir.join(p).is_file());
    programs
        .iter()
        .find(|p| !found(p))
        .map(|p| format!("{p} is not installed (scripts/deps test)"))
}

/// A reason found only on the way why a test cannot run here: counted as skipped.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// Runs `cases` as the arguments ask.
pub fn main(cases: &[Case]) -> ExitCode {
    let options = Options::parse();
    if options.list {
        for case in cases
            .iter()
            .filter(|c| !options.ignored && options.wants(c))
        {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<&Case> = cases.iter().filter(|c| options.wants(c)).collect();
    println!(
        "\nrunning {} of {} tests, one at a time",
        chosen.len(),
        cases.len()
    );
    let unfit = if chosen.is_empty() { None } else { unfit() };
    if unfit.is_none() {
        netns::sweep();
    }
    let mut totals = Totals::default();
    for case in chosen {
        match unfit.clone().or_else(|| options.obstacle(case)) {
            Some(reason) => totals.skip(case, reason),
            None => totals.run(case),
        }
    }
    totals.report()
}

/// What became of the tests so far.
#[derive(Default)]
struct Totals {
    passed: u32,
    failed: Vec<&'static str>,
    skipped: Vec<(&'static str, String)>,
}

impl Totals {
    fn skip(&mut self, case: &Case, reason: String) {
        println!("test {} ... skipped ({reason})", case.name);
        self.skipped.push((case.name, reason));
    }

    fn run(&mut self, case: &Case) {
        let start = Instant::now();
        let done = run(case);
        let took = start.elapsed().as_secs_f64();
        match done {
            Ok(()) => {
                println!("test {} ... ok ({took:.1} s)", case.name);
                self.passed += 1;
            }
            Err(e) => match e.downcast_ref::<Skip>() {
                Some(Skip(reason)) => self.skip(case, reason.clone()),
                None => {
                    println!("test {} ... FAILED ({took:.1} s)\n{e:#}", case.name);
                    self.failed.push(case.name);
                }
            },
        }
    }

    /// Names what was skipped and what failed, then the totals in one line.
    fn report(&self) -> ExitCode {
        println!();
        self.skipped
            .iter()
            .for_each(|(name, reason)| println!("SKIP {name}: {reason}"));
        self.failed
            .iter()
            .for_each(|name| println!("FAILED {name}"));
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        );
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// One test in a lab of its own; the lab goes whatever happens, the daemons' logs are shown when it failed.
fn run(case: &Case) -> Result<()> {
    let lab = Lab::new()?;
    let outcome = match catch_unwind(AssertUnwindSafe(|| {
        (case.run)(&lab).and_then(|()| lab.finish())
    })) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(anyhow::anyhow!(
                "the test panicked: {}",
                text.unwrap_or("no message")
            ))
        }
    };
    let Err(error) = outcome else { return Ok(()) };
    if error.downcast_ref::<Skip>().is_none() {
        println!("{}", lab.logs());
    }
    Err(error)
}
