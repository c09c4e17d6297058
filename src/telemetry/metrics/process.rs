//! What the system says about this process, under the names every Prometheus client uses.

use std::fs;

use super::Exposition;

/// Reads `/proc/self`; what cannot be read (another system, no descriptor left) is left out.
pub(super) fn collect(out: &mut Exposition) {
    if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident)
    {
        out.gauge("process_resident_memory_bytes", "Resident memory").sample(&[], bytes);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        let count = entries.count().saturating_sub(1);
        out.gauge("process_open_fds", "Open file descriptors").sample(&[], count);
    }
    if let Some(limit) = fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(max_fds) {
        out.gauge("process_max_fds", "Most file descriptors that may be open").sample(&[], limit);
    }
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_files_are_understood() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t   2048 kB\nThreads:\t1\n"), Some(2_097_152));
        assert_eq!(resident("VmRSS:\tlots\n"), None);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files   1024   4096   files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files  unlimited  unlimited  files"), None);
    }
}
