//! An image's manifest: what a guest gets when the command line does not say otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use foraker_api::units;

/// The manifest that is embedded in an image.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Manifest {
    /// Program that the image was built from. Not needed to run it.
    #[serde(rename = "program")]
    pub(crate) _program: Option<String>,
    /// Memory, bytes.
    #[serde(deserialize_with = "size")]
    pub(crate) memory: Option<u64>,
    /// Whether its heap is backed with pages of 2 MiB.
    pub(crate) large_pages: bool,
    /// Cores.
    pub(crate) cores: Option<u32>,
    /// Whether it has a network.
    pub(crate) network: Option<bool>,
    /// Arguments when none are given.
    pub(crate) arguments: Vec<String>,
    /// Environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Limits.
    pub(crate) limits: Limits,
}

/// Limits of a guest, per second.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Bytes received.
    #[serde(deserialize_with = "size")]
    pub(crate) rx_bandwidth: Option<u64>,
    /// Bytes sent.
    #[serde(deserialize_with = "size")]
    pub(crate) tx_bandwidth: Option<u64>,
    /// Frames sent.
    #[serde(deserialize_with = "size")]
    pub(crate) tx_packets: Option<u64>,
    /// Console bytes.
    #[serde(deserialize_with = "size")]
    pub(crate) console: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

fn size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    match Size::deserialize(d)? {
        Size::Number(n) => Ok(Some(n)),
        Size::Text(text) => units::size(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

/// Reads a manifest.
pub(crate) fn parse(text: Option<&str>) -> Result<Manifest, toml::de::Error> {
    text.map_or_else(|| Ok(Manifest::default()), toml::from_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_whole_manifest_and_refuses_unknown_keys() {
        let m = parse(Some(
            "program = \"httpd\"\nmemory = \"16M\"\ncores = 2\nnetwork = true\narguments = [\"a\"]\n[environment]\nK = \"v\"\n[limits]\nrx_bandwidth = \"1M\"\ntx_packets = \"50K\"\nconsole = 4096\n",
        ))
        .unwrap();
        assert_eq!((m.memory, m.cores, m.network), (Some(16 << 20), Some(2), Some(true)));
        assert_eq!((m.limits.rx_bandwidth, m.limits.console), (Some(1 << 20), Some(4096)));
        assert_eq!(m.limits.tx_packets, Some(50 << 10));
        assert_eq!(m.environment["K"], "v");
        assert!(parse(Some("colour = \"red\"")).is_err());
        assert!(parse(Some("memory = \"lots\"")).is_err());
    }
}
