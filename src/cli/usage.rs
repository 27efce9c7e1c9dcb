//! What the argument parser refuses, said the way every other error is.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind as ClapKind};

use super::print;
use super::value::wrong;
use crate::api::types::Error;

/// Prints help, the version or the error; the exit code.
pub(super) fn report(refused: &clap::Error, args: &[OsString]) -> u8 {
    if matches!(refused.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion) {
        print::stdout(&refused.render().to_string());
        return 0;
    }
    let error = error(refused);
    let given = |flag: &str| args.iter().take_while(|a| *a != "--").any(|a| a == flag);
    if given("--json") {
        print::stdout(&print::error_json(&error));
    } else {
        print::stderr(&print::error(print::Style::of_process(given("--no-color")), &error));
    }
    error.kind.exit_code()
}

/// The error of a value is its own; the parser's are `E-USAGE`.
fn error(refused: &clap::Error) -> Error {
    if let Some(own) = std::error::Error::source(refused).and_then(|e| e.downcast_ref::<Error>()) {
        let argument = refused.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
        let argument = argument.split_whitespace().next().unwrap_or_default().to_owned();
        let message = if argument.is_empty() { own.message.clone() } else { format!("{argument}: {}", own.message) };
        return Error { message, ..own.clone() };
    }
    let usage = match refused.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(text)) => text.to_string(),
        _ => String::new(),
    };
    let usage = usage.lines().next().unwrap_or_default().trim_start_matches("Usage: ").to_owned();
    let command: Vec<&str> = usage.split(' ').take_while(|w| !w.starts_with(['<', '[', '-'])).collect();
    if refused.kind() == ClapKind::DisplayHelpOnMissingArgumentOrSubcommand
        || refused.kind() == ClapKind::MissingSubcommand
    {
        return wrong("E-USAGE", "a verb is missing").hint("byway --help");
    }
    let text = refused.render().to_string();
    let message: Vec<&str> = text
        .strip_prefix("error: ")
        .unwrap_or(&text)
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let hint = match (refused.kind(), refused.get(ContextKind::SuggestedSubcommand)) {
        (ClapKind::InvalidSubcommand, Some(ContextValue::Strings(near))) if !near.is_empty() => {
            let near = near.first().map(String::as_str).unwrap_or_default();
            format!("{} {near}", if command.is_empty() { "byway".to_owned() } else { command.join(" ") })
        }
        (ClapKind::InvalidSubcommand, _) => {
            format!("{} --help", if command.is_empty() { "byway".to_owned() } else { command.join(" ") })
        }
        _ if usage.is_empty() => "byway --help".to_owned(),
        _ => usage.clone(),
    };
    wrong("E-USAGE", message.join(" ")).hint(hint)
}
