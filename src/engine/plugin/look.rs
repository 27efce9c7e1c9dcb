//! What the engine says of the containers in its networks: their names, further names and labels.
//!
//! Asked outside of every call of the plugin: within one the engine waits for the answer, and would wait for itself.

use std::collections::BTreeMap;
use std::path::Path;

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::engine::docker::DockerError;
use crate::engine::docker::client::get;

/// How the labels begin that tell this daemon something.
const OURS: &str = "byway.";

/// A container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The engine's ID of the endpoint.
    pub endpoint: String,
    /// Name of the network.
    pub network: String,
    /// The engine's ID of the container.
    pub container: String,
    /// Name of the container.
    pub name: String,
    /// Further names of the container in that network, in the order in which the engine has them.
    pub aliases: Vec<String>,
    /// Labels of the container.
    pub labels: BTreeMap<String, String>,
}

/// `GET /containers/ID/json`, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    image: String,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    network_settings: NetworkSettings,
}

/// `GET /images/ID/json`, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: Option<Config>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Option<BTreeMap<String, InNetwork>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct InNetwork {
    #[serde(rename = "EndpointID")]
    endpoint: String,
    #[serde(rename = "Aliases")]
    aliases: Option<Vec<String>>,
}

/// `GET /networks/ID`, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    containers: Option<BTreeMap<String, Member>>,
}

#[derive(Deserialize)]
struct Member {
    #[serde(rename = "EndpointID", default)]
    endpoint: String,
}

/// The places that a container has in networks; none where there is no such container.
///
/// # Errors
/// When the engine cannot be asked, or answers something else.
pub async fn places(socket: &Path, container: &str) -> Result<Vec<Place>, DockerError> {
    let answered = get(socket, &format!("/containers/{container}/json")).await?;
    let Some(mut found) = read::<Container>(socket, answered)? else {
        return Ok(Vec::new());
    };
    let own = found.config.labels.get_or_insert_default();
    if own.keys().any(|key| key.starts_with(OURS)) {
        let image = found.image.clone();
        let of_image = labels_of(socket, &image).await?;
        own.retain(|key, value| !key.starts_with(OURS) || of_image.get(key) != Some(value));
    }
    Ok(places_of(found))
}

/// The labels that an image brings along. The engine gives them to its containers as if a person had said them, and who
/// built an image has no say about ports and names here.
async fn labels_of(socket: &Path, image: &str) -> Result<BTreeMap<String, String>, DockerError> {
    let hash = image.strip_prefix("sha256:").unwrap_or_default();
    if hash.is_empty() || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(answer(socket, "a container without an image".to_owned()));
    }
    let answered = get(socket, &format!("/images/{image}/json")).await?;
    let found: Option<Image> = read(socket, answered)?;
    Ok(found
        .and_then(|image| image.config)
        .and_then(|config| config.labels)
        .unwrap_or_default())
}

fn places_of(container: Container) -> Vec<Place> {
    let name = container.name.trim_start_matches('/').to_owned();
    let labels = container.config.labels.unwrap_or_default();
    let short = container.id.get(..12).unwrap_or_default().to_owned();
    let networks = container.network_settings.networks.unwrap_or_default();
    networks
        .into_iter()
        .filter(|(_, network)| !network.endpoint.is_empty())
        .map(|(called, network)| {
            let mut aliases = network.aliases.unwrap_or_default();
            // The engine makes its ID a name as well, and newer ones its own name: neither was asked for.
            aliases.retain(|alias| *alias != short && *alias != name);
            Place {
                endpoint: network.endpoint,
                network: called,
                container: container.id.clone(),
                name: name.clone(),
                aliases,
                labels: labels.clone(),
            }
        })
        .collect()
}

/// The containers that are in a network now, each with its endpoint; none where the engine has no such network.
///
/// # Errors
/// When the engine cannot be asked, or answers something else.
pub async fn members(
    socket: &Path,
    network: &str,
) -> Result<Option<BTreeMap<String, String>>, DockerError> {
    let answered = get(socket, &format!("/networks/{network}")).await?;
    let found: Option<Network> = read(socket, answered)?;
    Ok(found.map(|network| {
        let containers = network.containers.unwrap_or_default();
        containers
            .into_iter()
            .map(|(container, member)| (container, member.endpoint))
            .collect()
    }))
}

/// What the engine at that socket answered, which is not what its API says.
fn answer(socket: &Path, what: String) -> DockerError {
    DockerError::Answer {
        socket: socket.to_path_buf(),
        what,
    }
}

/// An answer of the engine; none where it has no such thing.
fn read<T: DeserializeOwned>(
    socket: &Path,
    (status, body): (StatusCode, Bytes),
) -> Result<Option<T>, DockerError> {
    match status {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::OK => serde_json::from_slice(&body)
            .map(Some)
            .map_err(|error| answer(socket, format!("something else: {error}"))),
        other => Err(answer(socket, other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(body: &serde_json::Value) -> Vec<Place> {
        let bytes = Bytes::from(body.to_string());
        let read: Option<Container> = read(Path::new("/x"), (StatusCode::OK, bytes)).unwrap();
        places_of(read.unwrap())
    }

    #[test]
    fn names_that_were_asked_for_are_read_from_every_engine() {
        let id = "0123456789ab".repeat(5) + "0123";
        let of = |aliases: serde_json::Value, extra: serde_json::Value| {
            let mut network = json!({"EndpointID": "e1", "NetworkID": "n1", "Aliases": aliases});
            for (key, value) in extra.as_object().unwrap() {
                network[key] = value.clone();
            }
            json!({
                "Id": id, "Name": "/app_web_1",
                "Config": {"Labels": {"byway.name": "web"}},
                "NetworkSettings": {"Networks": {"lab": network, "idle": {"EndpointID": "", "Aliases": null}}}
            })
        };
        // 20.10 puts the ID among the aliases; 28 and 29 have names of their own beside.
        let old = of(json!(["web", "0123456789ab"]), json!({}));
        let new = of(
            json!(["web"]),
            json!({"DNSNames": ["app_web_1", "web", "0123456789ab"]}),
        );
        for body in [old, new] {
            let places = container(&body);
            assert_eq!(places.len(), 1, "one endpoint: {places:?}");
            assert_eq!(places[0].endpoint, "e1");
            assert_eq!(
                (places[0].name.as_str(), &places[0].aliases[..]),
                ("app_web_1", &["web".to_owned()][..])
            );
            assert_eq!(places[0].labels["byway.name"], "web");
        }
        let none = of(serde_json::Value::Null, json!({}));
        assert_eq!(container(&none)[0].aliases, Vec::<String>::new());
    }

    #[test]
    fn a_network_that_is_gone_is_told_from_one_that_cannot_be_read() {
        let gone = read::<Network>(Path::new("/x"), (StatusCode::NOT_FOUND, Bytes::new()));
        assert!(gone.is_ok_and(|found| found.is_none()));
        let broken = read::<Network>(Path::new("/x"), (StatusCode::OK, Bytes::from_static(b"[")));
        assert!(broken.is_err());
        let failing = read::<Network>(
            Path::new("/x"),
            (StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
        );
        assert!(failing.is_err());
    }
}
