; A team in the language of gprompt: tabs, methods under headers, agents by the prefix agent-.
;   fleet apply team.p --set workspace.path=. --set limits.cost=10 --run
; The runner is claude; --set runner=codex takes another one.

build:
	Read BACKLOG.md, pick the most important open item, build it with tests, commit, and tick it off.

fix:
	Read BUGS.md, pick one bug, find its cause, write a test that shows it, repair it, commit, and tick it off.

outline(topic):
	List what a newcomer must know about [topic], one item a line, at most five.

explain(item):
	Write a page about [item] for a newcomer, to docs/, with an example that runs.

agent-backlog:
	loop(build)

agent-bugs:
	loop(fix)

; Given by the line below it: @agent-writer(...)
agent-writer(topic):
	topic -> outline -> pages (map(outline, explain))

@agent-writer("how to get this project to run")
