from components.cli.role import main

main("prefill")
