//! The system bus: whether a service runs, and calls to it with what a refusal means.

use std::fmt;
use std::time::Duration;

use futures::Stream;
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, connection::Builder, fdo};

/// How long a service may take to answer a call.
const CALL: Duration = Duration::from_secs(5);

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// Why a service did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// This process may not ask for it: neither root, nor allowed by polkit.
    Denied(String),
    /// The service does not know the link, most often because it has not heard of it yet.
    NoLink(String),
    /// Anything else: the service is gone, does not answer, or cannot do it.
    Failed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Denied(why) | Refusal::NoLink(why) | Refusal::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<zbus::Error> for Refusal {
    fn from(error: zbus::Error) -> Refusal {
        match &error {
            zbus::Error::FDO(fdo) => match &**fdo {
                fdo::Error::AccessDenied(why)
                | fdo::Error::AuthFailed(why)
                | fdo::Error::InteractiveAuthorizationRequired(why) => Refusal::Denied(why.clone()),
                other => Refusal::Failed(other.to_string()),
            },
            zbus::Error::MethodError(name, why, _) => {
                let why = why.clone().unwrap_or_else(|| name.to_string());
                if name.as_str().ends_with(".NoSuchLink") {
                    Refusal::NoLink(why)
                } else {
                    Refusal::Failed(why)
                }
            }
            other => Refusal::Failed(other.to_string()),
        }
    }
}

/// A connection to the system bus.
#[derive(Debug, Clone)]
pub(super) struct Bus(Connection);

/// An object of a service, by the interface it is called through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Object<'a> {
    pub service: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
}

impl Bus {
    /// Connects to the bus of `DBUS_SYSTEM_BUS_ADDRESS`, else to that of this machine.
    ///
    /// # Errors
    /// When nobody is there, or takes too long.
    pub async fn open() -> Result<Bus, Refusal> {
        let build = Builder::system().method_timeout(CALL).build();
        match tokio::time::timeout(CALL, build).await {
            Ok(connection) => Ok(Bus(connection?)),
            Err(_) => Err(Refusal::Failed("the bus does not answer".to_owned())),
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// The name by which the bus knows the process that provides `service`; none where it does not run. It is not started.
    ///
    /// # Errors
    /// When the bus does not answer.
    pub async fn owner(&self, service: &str) -> Result<Option<String>, Refusal> {
        match self.ask_bus("GetNameOwner", service).await {
            Ok(reply) => Ok(Some(reply.body().deserialize()?)),
            Err(zbus::Error::FDO(error)) if matches!(*error, fdo::Error::NameHasNoOwner(_)) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The process that owns a name.
    ///
    /// # Errors
    /// When the bus does not tell.
    pub async fn process(&self, owner: &str) -> Result<u32, Refusal> {
        let reply = self.ask_bus("GetConnectionUnixProcessID", owner).await?;
        Ok(reply.body().deserialize()?)
    }

    async fn ask_bus(&self, method: &str, name: &str) -> zbus::Result<Message> {
        self.0
            .call_method(Some(BUS), BUS_PATH, Some(BUS), method, &name)
            .await
    }

    /// Calls a method of a service that runs.
    ///
    /// # Errors
    /// What the service said.
    pub async fn call<B>(
        &self,
        object: Object<'_>,
        method: &str,
        body: &B,
    ) -> Result<Message, Refusal>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let (service, path) = (Some(object.service), object.path);
        let reply = self
            .0
            .call_method(service, path, Some(object.interface), method, body)
            .await;
        Ok(reply?)
    }

    /// Yields whenever a process takes over or gives up the name of one of `services`.
    ///
    /// # Errors
    /// When the bus takes no such wish.
    pub async fn owners_changed(
        &self,
        services: &[&'static str],
    ) -> Result<impl Stream<Item = ()> + Send + Unpin + use<>, Refusal> {
        let mut streams = Vec::new();
        for service in services {
            let rule = MatchRule::builder()
                .msg_type(Type::Signal)
                .sender(BUS)
                .interface(BUS)
                .member("NameOwnerChanged")
                .add_arg(*service)
                .build()?;
            streams.push(MessageStream::for_match_rule(rule, &self.0, None).await?);
        }
        Ok(futures::StreamExt::map(
            futures::stream::select_all(streams),
            |_| (),
        ))
    }
}
