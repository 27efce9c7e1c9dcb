//! How this machine carries packets and what of it is used: `[data]`, `[dns]`, `[firewall]`, `[ports]`, `[workloads]` and
//! `[docker]`.

use super::{Key, Kind, Value, absolute, put, word};
use crate::config::{DataCipher, DnsMode, users};
use crate::model::host::firewalls::Integrate;
use crate::model::ports::{PortRange, PortRangeError};

/// Words of `data.cipher`.
const DATA_CIPHERS: [&str; 5] = [
    "auto",
    "aes-256-gcm",
    "aes-256-gcm by aws-lc",
    "aes-256-gcm by ring",
    "chacha20-poly1305",
];

/// The keys, in the order they are shown.
pub(super) const KEYS: &[Key] = &[
    Key {
        path: "data.cipher",
        kind: Kind::Text,
        set: |c, v| {
            c.data_cipher = match word(v.text(), &DATA_CIPHERS)? {
                "aes-256-gcm" => DataCipher::Aes256Gcm,
                "aes-256-gcm by aws-lc" => DataCipher::Aes256GcmByAwsLc,
                "aes-256-gcm by ring" => DataCipher::Aes256GcmByRing,
                "chacha20-poly1305" => DataCipher::ChaCha20Poly1305,
                _ => DataCipher::Auto,
            };
            Ok(())
        },
        show: |c| {
            let text = match c.data_cipher {
                DataCipher::Auto => "auto",
                DataCipher::Aes256Gcm => "aes-256-gcm",
                DataCipher::Aes256GcmByAwsLc => "aes-256-gcm by aws-lc",
                DataCipher::Aes256GcmByRing => "aes-256-gcm by ring",
                DataCipher::ChaCha20Poly1305 => "chacha20-poly1305",
            };
            Value::Text(text.to_owned())
        },
    },
    Key {
        path: "dns.mode",
        kind: Kind::Text,
        set: |c, v| {
            c.dns_mode = if word(v.text(), &["split", "off"])? == "off" {
                DnsMode::Off
            } else {
                DnsMode::Split
            };
            Ok(())
        },
        show: |c| {
            Value::Text(
                if c.dns_mode == DnsMode::Off {
                    "off"
                } else {
                    "split"
                }
                .to_owned(),
            )
        },
    },
    Key {
        path: "dns.host",
        kind: Kind::Text,
        set: |c, v| {
            put(
                &mut c.dns_host,
                word(v.text(), &["auto", "off"]).map(|w| w == "auto"),
            )
        },
        show: |c| Value::Text(if c.dns_host { "auto" } else { "off" }.to_owned()),
    },
    switch!("firewall.repair", firewall_repair),
    Key {
        path: "firewall.integrate",
        kind: Kind::List,
        set: |c, v| put(&mut c.firewall_integrate, integrate(v.list())),
        show: |c| {
            let Integrate {
                docker,
                firewalld,
                ufw,
            } = c.firewall_integrate;
            let named = INTEGRATE
                .iter()
                .zip([docker, firewalld, ufw])
                .filter(|(_, on)| *on);
            Value::List(named.map(|(name, _)| (*name).to_owned()).collect())
        },
    },
    Key {
        path: "ports.range",
        kind: Kind::Text,
        set: |c, v| put(&mut c.ports_range, ports(v.text())),
        show: |c| Value::Text(c.ports_range.to_string()),
    },
    Key {
        path: "workloads.users",
        kind: Kind::List,
        set: |c, v| put(&mut c.workload_users, users::read(v.list())),
        show: |c| Value::List(c.workload_users.iter().map(ToString::to_string).collect()),
    },
    Key {
        path: "docker.plugin_dir",
        kind: Kind::Text,
        set: |c, v| put(&mut c.docker_plugin_dir, absolute(v.text())),
        show: |c| Value::Text(c.docker_plugin_dir.display().to_string()),
    },
];

/// Firewalls that leave a place to rules of others.
const INTEGRATE: [&str; 3] = ["docker", "firewalld", "ufw"];

fn integrate(list: &[String]) -> Result<Integrate, String> {
    let mut chosen = Integrate::NONE;
    for entry in list {
        match word(entry, &INTEGRATE)? {
            "docker" => chosen.docker = true,
            "firewalld" => chosen.firewalld = true,
            _ => chosen.ufw = true,
        }
    }
    Ok(chosen)
}

fn ports(text: &str) -> Result<PortRange, String> {
    text.parse().map_err(|e: PortRangeError| e.to_string())
}
