//! What a guest gets: what was asked for first, then what its image's manifest says, then its note, then what everybody has.

use std::path::PathBuf;

use foraker_api::{Grain, GuestSpec};
use foraker_cell::{LoadedImage, NetworkSpec, ProcessorSpec, spec::DEFAULT_CONSOLE};

use crate::channel::Order;
use crate::manifest::{self, Manifest};

/// Most bytes of a guest's arguments and environment together: they have a page of their own in it.
const MOST_TEXT: usize = 64 << 10;

/// What an image says of guests of which nothing else is said.
#[derive(Debug)]
pub struct Defaults {
    manifest: Manifest,
    /// Bytes.
    pub memory: u64,
    /// Whether they have a network.
    pub network: bool,
}

impl Defaults {
    /// Those of an image.
    ///
    /// # Errors
    /// Its manifest is damaged.
    pub fn of(image: &LoadedImage) -> Result<Defaults, String> {
        let manifest = manifest::parse(image.manifest()).map_err(|e| {
            format!("the manifest in the image is damaged, build the image again: {}", e.message())
        })?;
        let memory = manifest.memory.unwrap_or(image.memory());
        let network = manifest.network.unwrap_or(image.wants_network());
        Ok(Defaults { manifest, memory, network })
    }
}

/// The guest to start, of the image in a file; `network` is the number of its network.
///
/// # Errors
/// What is asked for contradicts itself: one line that says how.
pub fn resolve(
    spec: &GuestSpec,
    name: &str,
    image: PathBuf,
    defaults: &Defaults,
    network: u32,
) -> Result<Order, String> {
    let m = &defaults.manifest;
    let memory = spec.memory.unwrap_or(defaults.memory);
    if memory > foraker_abi::layout::MAX_MEMORY {
        return Err(format!(
            "{memory} bytes of memory for {name} are too much: a guest can have 64G at most"
        ));
    }
    if spec.memory_provision.is_some_and(|kept| kept > memory) {
        return Err(format!(
            "--provision-memory is more than the guest's memory of {} KiB (-m)",
            memory >> 10
        ));
    }
    let processor = spec.processor;
    if processor.limit.zip(processor.provision).is_some_and(|(most, kept)| kept > most) {
        return Err("--provision-cpus is more than --cpus allows".to_owned());
    }
    let options = &spec.network;
    let has_network = options.enabled.unwrap_or(defaults.network);
    if !has_network {
        if let Some(port) = options.publish.first() {
            return Err(format!(
                "guest {name} has no network, so port {} cannot be published: add --net",
                port.guest
            ));
        }
        if let Some(network) = &options.name {
            return Err(format!("guest {name} has no network, so it cannot be in {network}: add --net"));
        }
    }
    let mut environment = m.environment.clone();
    environment.extend(spec.environment.clone());
    let environment: Vec<_> = environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let arguments = if spec.arguments.is_empty() { m.arguments.clone() } else { spec.arguments.clone() };
    if environment.iter().chain(&arguments).map(String::len).sum::<usize>() > MOST_TEXT {
        return Err(format!("the arguments and the environment of {name} are too long: 64K at most"));
    }
    Ok(Order {
        image,
        name: name.to_owned(),
        memory,
        memory_provision: spec.memory_provision.unwrap_or(0),
        large_pages: spec.large_pages.unwrap_or(m.large_pages),
        cores: spec.cores.or(m.cores).unwrap_or(1),
        arguments,
        environment,
        network: has_network.then(|| NetworkSpec {
            ipv4: options.ipv4,
            network,
            dns: options.dns,
            rx_bytes: options.rx_bandwidth.or(m.limits.rx_bandwidth),
            tx_bytes: options.tx_bandwidth.or(m.limits.tx_bandwidth),
            tx_packets: options.tx_packets.or(m.limits.tx_packets),
        }),
        console_limit: spec.console_bandwidth.or(m.limits.console).unwrap_or(DEFAULT_CONSOLE),
        publish: options.publish.iter().map(|p| (p.host, p.guest)).collect(),
        processor: ProcessorSpec {
            share: processor.shares.unwrap_or(ProcessorSpec::default().share),
            limit: processor.limit,
            provision: processor.provision,
            grain: match processor.grain {
                Grain::Auto => foraker_cell::Grain::Auto,
                Grain::Coarse => foraker_cell::Grain::Coarse,
                Grain::Fine => foraker_cell::Grain::Fine,
            },
        },
        keep_core: spec.keep_core,
        immediate: spec.immediate,
        owner: spec.owner.clone(),
        priority: spec.priority,
    })
}

/// What is shown of a guest whose image or network is no longer there: it does not start.
pub(crate) fn unresolved(spec: &GuestSpec, name: &str) -> Order {
    Order {
        image: PathBuf::new(),
        name: name.to_owned(),
        memory: spec.memory.unwrap_or(0),
        memory_provision: 0,
        large_pages: false,
        cores: spec.cores.unwrap_or(1),
        arguments: Vec::new(),
        environment: Vec::new(),
        network: None,
        console_limit: DEFAULT_CONSOLE,
        publish: Vec::new(),
        processor: ProcessorSpec::default(),
        keep_core: false,
        immediate: false,
        owner: spec.owner.clone(),
        priority: spec.priority,
    }
}
