import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Base64;

/** The JDK's HttpClient with its default settings: over plain HTTP it offers an upgrade to HTTP/2. See stock.py. */
public class StockClient {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = input.readLine()) != null; ) {
            String[] fields = line.split("\t");
            HttpRequest request = HttpRequest.newBuilder(URI.create(fields[0]))
                .header("Authorization", "Bearer " + fields[1])
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofByteArray(Base64.getDecoder().decode(fields[2])))
                .build();
            HttpResponse<byte[]> answer = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
            System.out.println(answer.statusCode() + "\t" + Base64.getEncoder().encodeToString(answer.body()));
        }
    }
}
