//! What a launch may not leave behind: TAP devices and processes.

use std::fs;

/// A network device: its name and its index, which is never used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
}

fn index_of(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}

/// The TAP devices that a process holds.
#[must_use]
pub fn taps_of(pid: u32) -> Vec<Device> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter_map(|text| {
            let name = text.lines().find_map(|line| line.strip_prefix("iff:"))?.trim().to_owned();
            let index = index_of(&name)?;
            Some(Device { name, index })
        })
        .collect()
}

/// Whether a device still exists.
#[must_use]
pub fn exists(device: &Device) -> bool {
    index_of(&device.name) == Some(device.index)
}

/// Processes of a process group that have not ended.
#[must_use]
pub fn members_of(group: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // pid (name) state parent group: the name may hold anything but ends at the last bracket.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields.first() != Some(&"Z") && fields.get(2) == Some(&group.to_string().as_str())
    })
    .collect()
}
