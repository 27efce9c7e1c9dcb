//! The value of a key: its type, how the environment spells it, how it is shown.

use std::fmt;

/// The type of a key's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The value is a string.
    Text,
    /// The value is a string with a period of time in it.
    Period,
    /// The value is an integer.
    Number,
    /// The value is true or false.
    Switch,
    /// The value is true, false, or `"auto"`.
    AutoSwitch,
    /// The value is a list of strings; one string alone is a list of one.
    List,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Text => "a string",
            Kind::Period => "a time in quotes, as \"60s\"",
            Kind::Number => "a whole number",
            Kind::Switch => "true or false",
            Kind::AutoSwitch => "\"auto\", true or false",
            Kind::List => "a list of strings",
        })
    }
}

/// A value of one key; [`fmt::Display`] writes it as TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kinds above")]
pub enum Value {
    Text(String),
    Number(i64),
    Switch(bool),
    List(Vec<String>),
}

impl Value {
    pub(super) fn text(&self) -> &str {
        if let Value::Text(text) = self {
            text
        } else {
            ""
        }
    }

    pub(super) fn switch(&self) -> bool {
        matches!(self, Value::Switch(true))
    }

    pub(super) fn list(&self) -> &[String] {
        match self {
            Value::List(list) => list,
            Value::Text(one) => std::slice::from_ref(one),
            _ => &[],
        }
    }

    pub(super) fn number(&self, least: u32, most: u32) -> Result<u32, String> {
        let Value::Number(n) = self else {
            return Err(format!("expected {}", Kind::Number));
        };
        u32::try_from(*n)
            .ok()
            .filter(|n| (least..=most).contains(n))
            .ok_or_else(|| format!("expected a number from {least} to {most}"))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A JSON string is a TOML basic string but for DEL, which TOML wants escaped.
        let quote = |s: &str| {
            serde_json::Value::from(s)
                .to_string()
                .replace('\u{7f}', "\\u007f")
        };
        match self {
            Value::Text(text) => f.write_str(&quote(text)),
            Value::Number(n) => write!(f, "{n}"),
            Value::Switch(b) => write!(f, "{b}"),
            Value::List(list) => write!(
                f,
                "[{}]",
                list.iter().map(|s| quote(s)).collect::<Vec<_>>().join(", ")
            ),
        }
    }
}

/// A value of the environment, where everything is text: lists are separated by commas.
pub(super) fn from_variable(kind: Kind, text: &str) -> Result<Value, String> {
    Ok(match kind {
        Kind::Text | Kind::Period => Value::Text(text.to_owned()),
        Kind::Number => Value::Number(text.parse().map_err(|_| format!("expected {kind}"))?),
        Kind::Switch => Value::Switch(match text {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => return Err(format!("expected {kind}")),
        }),
        Kind::AutoSwitch => match from_variable(Kind::Switch, text) {
            Ok(value) => value,
            Err(_) => Value::Text(text.to_owned()),
        },
        Kind::List => Value::List(
            text.split(',')
                .map(str::trim)
                .filter(|s| !s.is_empty())
                .map(ToOwned::to_owned)
                .collect(),
        ),
    })
}
