//! Tables for people, as kubectl prints them: upper-case headings, columns as wide as their content.

/// Lays rows out under their headings. Cells may hold what strangers wrote: control characters don't reach the terminal.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
    let mut widths = headings.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    let body = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(line(headings)).chain(body).collect::<Vec<_>>().join("\n")
}

fn plain(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["edge-7".to_owned(), "yes".to_owned()], ["a".to_owned(), "no".to_owned()]];
        assert_eq!(table(["NAME", "ONLINE"], &rows), "NAME     ONLINE\nedge-7   yes\na        no");
    }

    #[test]
    fn what_a_stranger_wrote_does_not_command_the_terminal() {
        assert_eq!(table(["A"], &[["\u{1b}[2Jx\ny\u{9b}".to_owned()]]), "A\n [2Jx y");
    }
}
