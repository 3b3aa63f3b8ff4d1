"""What the factory says that pages show often, as templates with placeholders, for the catalogues of translations.

``serve/portal/pages/telling.py`` tells a sentence in the reader's language by
them; a test holds them against the code that says them.
"""

from __future__ import annotations


def _(message: str) -> str:
    """Mark a message for the catalogues."""
    return message


SENTENCES = (
    # Why a request waits.
    _("Waiting to be admitted."),
    _("starts at once, as the queue is now"),
    _("never: asks for {asked}, the cluster has {there}"),
    _("never: team {team} may run no request"),
    _("never: team {team} may use no trial-seconds"),
    _("waiting for {day}: team {team} has used its {most} trial-seconds of this month; {when}"),
    _("{n} requests of team {team} come first; {when}"),
    _("a request of team {team} comes first; {when}"),
    _("waiting for one to end: team {team} runs {running}, as many as it may; {when}"),
    _("waiting for {asked} guaranteed to team {team}: {teams} makes room as running trials end"),
    _("waiting for {asked} guaranteed to team {team}: {teams} make room as running trials end"),
    _("waiting, for what is free is kept for team {team}, which comes first; {when}"),
    _("waiting for {asked}: {teams} holds {held} of {all}; {when}"),
    _("waiting for {asked}: {teams} hold {held} of {all}; {when}"),
    # What is wrong with a batch, or its schedule.
    _("There is a batch '{name}' already."),
    _("Delete that one first, or choose another name."),
    _("is taken"),
    _("Run {n} of {name} is under way."),
    _("Run {n} of {name} is under way; one runs at a time."),
    _("Pause the batch, and delete it when the run has ended."),
    _("minute '{value}' is not from {low} to {high}"),
    _("hour '{value}' is not from {low} to {high}"),
    _("day '{value}' is not from {low} to {high}"),
    _("month '{value}' is not from {low} to {high}"),
    _("weekday '{value}' is not from {low} to {high}"),
    _("'{cron}' has {n} fields; it takes 5: minute hour day month weekday"),
    _("there is no such day as in '{cron}'"),
    _("'{every}' is not as '15m', '6h' or '1d'"),
    _("'{every}' is not from 1m to 366d"),
    _("'{zone}' is not known; write one as 'Europe/Berlin', or 'UTC'"),
    # What a quote is made from.
    _("The request is not valid."),
    _("It searches until its time is over."),
    _("It ends after {trials}, or when its time is over."),
    _("It searches nothing and ends when its parent's models are fitted."),
    _("No earlier request of this kind corrects what is usual."),
    _("Corrected by {requests} of recipe '{recipe}'."),
    _("Nothing is known: no earlier request with like data was scored by '{metric}'."),
    _("By {n} of {requests}, whose data are like these; the nearest made {variant}, at a distance of {distance}."),
    _("'{place}' is not on this machine: it was not looked at."),
    _("The feature service '{service}' was not looked at."),
    # What happens to a request.
    _("Received."),
    _("Cancelled."),
    _("Cancelled; finished trials are kept."),
    _("Stopped to make room; it goes on with all finished trials."),
    _("Reading and screening the data."),
    _("Scoring the best blend on rows that the search has not seen."),
    _("No variant passed its gate; champions stay."),
    _("Registered {variants}."),
    _("{family} was left out: {reason}."),
    _("An earlier attempt has made {segments}."),
    _("Segment '{segment}' is served by the pooled variant: {reason}"),
    _("The pooled variant serves rows without a value of '{column}': {n} of {whole}."),
    _("{rows} rows without a target were left out."),
    _("Predictions below {floor} are raised to it, as {metric} needs it."),
    _("Features of '{service}' joined as of each row's moment."),
    _("No earlier search is near enough to start from: this one starts from nothing."),
    _("{variant} waits for an approval as {kind}: {proposal}."),
    _("{variant} is champion now."),
    _("{variant} is challenger now."),
    _("{variant}: Passed. {found}"),
    _("{variant}: Not passed. {found}"),
    _("{variant}: The best blend keeps {bounds}: nothing was given up."),
    _("{variant}: Members and weights are those of the pooled variant, which was chosen under {bounds}."),
    _("{variant}: All members of the segment's own blend keep {bounds}: nothing was given up."),
    _("{variant}: Members and weights are those of its parent; a row takes {time}, and {bounds} was to be kept."),
    _("Admitted as attempt {n} with {resources}."),
    _("Asked to make room for {request}."),
    _("Job {job} waits to be admitted."),
    _("On the way to {state}."),
    _("Served at {address}."),
    _(
        "Searching {families} families on {rows} rows and {columns} columns ({how}); {unseen} rows are set aside for "
        "the gate."
    ),
    _(
        "Searching the family {family} on {rows} rows and {columns} columns ({how}); {unseen} rows are set aside for "
        "the gate."
    ),
    # What a gate found.
    _("Passed."),
    _("Not passed."),
    _("{rows} held-out rows were judged."),
    _("{rows} held-out rows were judged; at least {least} are needed."),
    _(
        "{metric} against {other} of {baseline}: {better} ({level} interval {low} to {high}); {needed} in {sure} of "
        "{n} resamples, {limit} needed."
    ),
    _(
        "{metric} against {other} of {baseline}: {better} ({level} interval {low} to {high}); {needed} in {sure} of "
        "{n} resamples, by a normal tail, {limit} needed."
    ),
    _("One row takes {value}; at most {most} are allowed."),
    _("One row takes {value}; only {most} are allowed."),
    _("The variant takes {value}; at most {most} are allowed."),
    _("The variant takes {value}; only {most} are allowed."),
    _("No column alone gives the target away."),
    _("Columns that alone give the target away were left out ({columns})."),
    _("it has {rows} rows, fewer than segments.min_rows {least}."),
    _("none of its rows are among those set aside for the gate."),
    _("it has too few rows of class '{label}'."),
    # Problems.
    _("There is no column '{name}'."),
    _("Did you mean '{name}'?"),
    _("There is no variant '{name}'."),
    _("There is no request '{name}'."),
    _("There is no team '{name}'."),
    _("There is no dataset '{name}'."),
    _("There is no recipe '{name}'."),
    _("There is no feature service '{name}'."),
    _("There is a team '{name}' already."),
    _("{variant} has no version {version}."),
    _("{variant} was turned down by its gate."),
    _("{variant} is the champion, beside which there is {beside}."),
    _("Take that out of traffic first, or make another version champion."),
    _("Take those out of traffic first, or make another version champion."),
    _("{variant} has no champion."),
    _("{who} has made version {version} champion of {variant} meanwhile: {why}"),
    _("{who} has left {variant} without a champion meanwhile: {why}"),
    _("Look at it; promote your version again where it should take that one's place."),
    _("Look at its model card; an override (--override) promotes it all the same and is recorded."),
    _("{variant} has to be approved by a second person before callers get it."),
    _("{variant} has to be approved; to override that needs the scope 'admin'."),
    _("{variant} has no earlier champion."),
    _("{what} was changed since it was read."),
    _("Read it again, and make the change to what it is now."),
    _("How {variant} is served was changed meanwhile."),
    _("{variant} is of team {team}, which has shared it for reading."),
    _("Ask that team."),
    _("The model card of {variant} is not kept any more."),
    _("This needs the scope '{scope}'; you have {scopes}."),
    _("A team's admin gives it: POST /api/v1/tokens for programs, the team's members for people."),
    _("This is for all teams; you act for team {team}."),
    _("A team's quota is an operator's to give."),
    _("Ask an operator."),
    _("Team {team} is archived."),
    _("Use another team; an archived one does not come back."),
    _("Request {request} is {state}: it cannot be cancelled any more."),
    _("Request {request} is {state}: only one that waits has a place that could be changed."),
    _("Too many people try variants at this moment."),
    _("Too many versions are being exported at this moment."),
    _("Too many requests are being submitted."),
    _("Try again in a moment."),
    _("This is more than {n} calls a minute."),
    _("Wait as long as Retry-After says; follow events instead of asking again and again."),
    _("Too many tokens or sign-ins from this address were refused."),
    _("Wait, then try again."),
    _("There is no route '{path}'."),
    _("ONNX does not have {what}."),
    _("Export it as a folder, or order it with `families` that are trees or linear, without texts."),
    _("{variant} has {size} MB; at most {most} MB are sent."),
    _("Export it on the factory's machine: factory variants export."),
    _("'{file}' has a header but no rows."),
    _("Give a table with at least 20 rows."),
    _("'{file}' has one column only; a table needs a target and something to predict it by."),
    _("Separate columns by a comma, a semicolon, a tab or a bar."),
    _("'{file}' has more than {n} rows."),
    _("Give a sample, or ask an operator to raise FACTORY_MAX_ROWS."),
    _("'{file}' would become more than {n} times as large when it is unpacked."),
    _("Upload it with less compression, or without."),
    _("'{file}' is empty."),
    _("The file '{file}' is empty."),
    _("The file '{file}' does not exist."),
    _("Give a Parquet, CSV or Arrow/Feather file with a header and rows."),
    _("Check that the file is complete and that its suffix names its format."),
    _("The table has {rows}; at least {least} are needed."),
    _("The table has {rows} rows; at most {most} are read."),
    _("The target '{name}' cannot be left out."),
    _("Mend the named field and try again."),
    # What is suspicious about a table.
    _("'{column}' has no value in any row; {follows}."),
    _("'{column}' has a value in only {n} of {all} rows; {follows}."),
    _("'{column}' is '{value}' in every row and says nothing; {follows}."),
    _(
        "'{column}' differs in (almost) every row ({n} values in {all} rows) and names the row rather "
        "than describing it; {follows}."
    ),
    _("'{column}' holds the same values as '{other}'; {follows}."),
    _("'{column}' is the target under another name ({how}, {where}), which nobody knows when predicting; {follows}."),
    _(
        "'{column}' gives '{target}' away by having a value or none (correlation {r}), as columns do "
        "that are filled in after the outcome; {follows}."
    ),
    _(
        "'{column}' alone gives the target away (cross-validated {what}), as columns do that are known "
        "only after the outcome; {follows}."
    ),
    _("'{column}' almost tells '{target}' (correlation {r}); {follows}."),
    _("'{column}' almost tells '{target}' by the word '{word}' (correlation {r}); {follows}."),
    _("'{column}' almost tells '{target}' (Cramér's V {v}); {follows}."),
    _("'{column}' is missing in {share} of the rows; {follows}."),
    _("'{column}' has one and the same value in all but {n} of {all} rows; {follows}."),
    _(
        "'{column}' is '{value}' in {n} rows, of which {share} are of class '{label}', against {prior} "
        "of all rows; {follows}."
    ),
    _(
        "'{column}' is '{value}' in {n} rows, of which {share} are of class '{label}', against {prior} "
        "of all rows, and {m} more values are as telling; {follows}."
    ),
    _("'{column}' says almost the same as '{other}' (correlation {r}); {follows}."),
    _("'{column}' is left out, since the request names it in 'drop'."),
    _(
        "'{column}' gives '{target}' away by having a value or none (correlation {r}), as columns do that "
        "are filled in after the outcome; {follows}. Name it in 'keep' if it is known when predicting."
    ),
    _(
        "'{column}' alone gives the target away (cross-validated {what}), as columns do that are known only "
        "after the outcome; {follows}. Name it in 'keep' if it is known when predicting."
    ),
    _(
        "'{column}' alone gives the target away (cross-validated {what}; the best other column reaches "
        "{score}), as columns do that are known only after the outcome; {follows}. Name it in 'keep' if it "
        "is known when predicting."
    ),
    _(
        "'{column}' alone gives the target away (cross-validated {what}; the best other column reaches "
        "{score}), as columns do that are known only after the outcome; {follows}."
    ),
    _("Mend the named fields and try again."),
    _("This is required."),
    _("The token is not known."),
    _("The token has expired."),
    _("The token was revoked."),
    _("The token's team is archived."),
    _("The session is not known, or has ended."),
    _("Send a token that is good."),
    _("No predictor runs here, so nothing can be tried."),
    _("`factory up` starts one."),
    _("The predictor does not answer as it should: {why}."),
    _("The files of {variant} are not kept here."),
    _("Its scores and lineage are part of the version itself."),
    _("An unexpected fault ended this call; it is {id} in the portal's log."),
    _("Try again, and report it with this id if it comes back."),
)
"""Templates of the factory's sentences, as its code writes them with values for the placeholders."""
PHRASES = (
    _("it is left out"),
    _("it is used, but check that it is known when predicting"),
    _("it is used, but check where it comes from"),
    _("it is used, but says next to nothing"),
    _("it is used, since the request names it in 'keep'"),
    _("both are used, and share what importance they have"),
    _("one value for each class of '{target}'"),
    _("'{target}' times a factor plus a constant"),
    _("in every row"),
    _("in the {n} of {all} rows that have it"),
    _("a constant"),
    _("the champion {variant}"),
    _("less than a minute"),
    _("about a minute"),
    _("about {n} minutes"),
    _("about an hour"),
    _("about {n} hours"),
    _("about a day"),
    _("about {n} days"),
    _("no estimate yet"),
    _("no CPU"),
    _("no GPU"),
    _("1 CPU"),
    _("{n} CPUs"),
    _("1 GPU"),
    _("{n} GPUs"),
    _("{n} GB of memory"),
    _("{n} of its {all}"),
    _("team {a}"),
    _("teams {a} and {b}"),
    _("teams {a} and {n} more"),
    _("1 request"),
    _("{n} requests"),
    _("1 trial"),
    _("{n} trials"),
    _("1 earlier request"),
    _("{n} earlier requests"),
    _("1 row"),
    _("{n} rows"),
    _("1 segment"),
    _("{n} segments"),
    _("an improvement"),
    _("more than {margin}"),
    _("better by {n}"),
    _("worse by {n}"),
    _("over {n}"),
    _("The deployment of {variant}"),
    _("and"),
    _("1 January"),
    _("1 February"),
    _("1 March"),
    _("1 April"),
    _("1 May"),
    _("1 June"),
    _("1 July"),
    _("1 August"),
    _("1 September"),
    _("1 October"),
    _("1 November"),
    _("1 December"),
)
"""Templates of what stands within sentences for a placeholder."""
