//! What the kernel says of a process: CPU and memory (proc(5)).

use std::{fs, time::Duration};

use anyhow::Context as _;

/// CPU time that all threads of a process have used so far, user and system.
///
/// # Errors
/// If there is no such process.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name is in brackets and may hold anything; utime and stime are the 14th and 15th field of the line.
    let after = stat.rsplit_once(')').map(|(_, rest)| rest).context("no name in stat")?;
    let mut fields = after.split_ascii_whitespace().skip(11);
    let mut ticks = || -> anyhow::Result<u64> {
        let field = fields.next().context("stat has too few fields")?;
        field.parse().with_context(|| path.clone())
    };
    let all = ticks()? + ticks()?;
    Ok(Duration::from_secs_f64(all as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// CPU time of several processes together.
///
/// # Errors
/// If one of them is gone.
pub fn cpu_of(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| cpu(*pid)).sum()
}

/// How many processes wanted to run, on average, in the minute before.
///
/// # Errors
/// If the kernel does not say.
pub fn load_average() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    Ok(text.split(' ').next().context("/proc/loadavg is empty")?.parse()?)
}

/// Memory of a process, in bytes (`smaps_rollup`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In RAM, what is shared with others included: program text, libraries.
    pub resident: u64,
    /// In RAM, of this process alone: what it would give back by ending.
    pub private: u64,
}

/// What a process holds now.
///
/// # Errors
/// If there is no such process.
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    parse(&fs::read_to_string(&path).with_context(|| path.clone())?)
}

fn parse(rollup: &str) -> anyhow::Result<Memory> {
    let field = |name: &str| -> anyhow::Result<u64> {
        let line =
            rollup.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    };
    let private = field("Private_Clean:")? + field("Private_Dirty:")?;
    Ok(Memory { resident: field("Rss:")?, private })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_time_and_memory() {
        let me = std::process::id();
        let before = memory(me).unwrap();
        let begun = std::time::Instant::now();
        let mut held = vec![1u8; 32 << 20];
        while cpu(me).unwrap() == Duration::ZERO && begun.elapsed() < Duration::from_secs(10) {
            held.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(3));
        }
        assert!(cpu_of(&[me, me]).unwrap() > Duration::ZERO);
        let after = memory(me).unwrap();
        assert!(after.private - before.private >= 24 << 20, "{before:?} {after:?} {}", held[0]);
        assert!(after.resident >= after.private);
    }

    #[test]
    fn a_roll_up_is_read_in_bytes() {
        let text = "00400000-7ffd ---p 00000000 00:00 0 [rollup]\nRss:     100 kB\nPss:      60 kB\nPrivate_Clean:   1 kB\nPrivate_Dirty:  20 kB\n";
        assert_eq!(parse(text).unwrap(), Memory { resident: 100 << 10, private: 21 << 10 });
        assert!(parse("Rss: 1 kB\n").is_err());
    }
}
