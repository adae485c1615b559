// Go's net/http with its default settings. See stock.py.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadString('\n')
		if err != nil {
			return
		}
		fields := strings.Split(strings.TrimSpace(line), "\t")
		body, err := base64.StdEncoding.DecodeString(fields[2])
		if err != nil {
			panic(err)
		}
		request, err := http.NewRequest("POST", fields[0], bytes.NewReader(body))
		if err != nil {
			panic(err)
		}
		request.Header.Set("Authorization", "Bearer "+fields[1])
		request.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			panic(err)
		}
		content, err := io.ReadAll(answer.Body)
		if err != nil {
			panic(err)
		}
		answer.Body.Close()
		fmt.Printf("%d\t%s\n", answer.StatusCode, base64.StdEncoding.EncodeToString(content))
	}
}
